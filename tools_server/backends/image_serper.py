"""Image search on the web: Google Lens by Serper, given the address where this server shows the
picture.
"""

from __future__ import annotations

import base64
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2

from tools_server import degraded
from tools_server.backend_config import SerperLens
from tools_server.backends.http_service import SERPER_FIELDS, serper_results, serper_service
from tools_server.failures import ToolError
from tools_server.fetching.fetch import PICTURES, Fetcher
from tools_server.images import ImageStore, StoredImage
from tools_server.limits import deadline
from tools_server.pictures.encode import encode
from tools_server.schemas import Image, Match
from tools_server.signatures import picture_path

MAX_THUMBNAIL_PIXELS = 4_000_000
THUMBNAIL_S = 5.0  # longest time for one, with its decoding
THUMBNAILS_SHARE = 0.8  # of the time that is left, for all of them
FETCHES = 32  # thumbnails that are fetched at the same time


class SerperImageSearch:
    """`POST /lens {url}`; the organic results in their order, those whose thumbnail can be had."""

    name = 'serper'

    def __init__(self, config: SerperLens, store: ImageStore, token: str | None = None):
        self._config = config
        self._store = store
        self._token = token
        self._service = serper_service(
            config.base_url, config.api_key_env, config.timeout_s, config.limits
        )
        self.services = (self._service,)
        self._fetcher = Fetcher(min(config.timeout_s, THUMBNAIL_S), config.allow_private_pages)
        self._fetching = ThreadPoolExecutor(FETCHES, thread_name_prefix='thumbnails')

    def close(self) -> None:
        """Starts no more fetches."""
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """See `backends.ImageSearch.search`."""
        path = picture_path(image.sha256, self._token)
        answer = self._service.post('/lens', {'url': self._config.public_url + path}, SERPER_FIELDS)
        results = serper_results(answer)[: 2 * top_k]  # some thumbnails cannot be had
        matches: list[Match] = []
        # A fifth of the time is kept back: slow thumbnails cost their results and not the search.
        with deadline.within(min(THUMBNAIL_S, THUMBNAILS_SHARE * deadline.left())):
            thumbnails = [
                self._fetching.submit(contextvars.copy_context().run, self._thumbnail, result)
                for result in results
            ]
            for rank, (result, thumbnail) in enumerate(zip(results, thumbnails, strict=True)):
                if len(matches) == top_k:
                    thumbnail.cancel()
                    continue
                try:
                    shown = thumbnail.result(min(max(0.0, deadline.left()), threading.TIMEOUT_MAX))
                except TimeoutError:
                    thumbnail.cancel()
                    degraded.note(
                        f'result {rank + 1} is left out: its thumbnail did not come in time'
                    )
                except ToolError as error:
                    degraded.note(
                        f'result {rank + 1} is left out: it has no thumbnail: {error.message}',
                        lasting=error.kind in ('refused', 'caller'),
                    )
                else:
                    matches.append(
                        Match(title=result.get('title'), thumbnail=shown, score=1 / (1 + rank))
                    )
            # A failure holds this frame; did the frame hold the failure, the picture that was read
            # would wait for the garbage collector.
            thumbnail = None
            thumbnails.clear()
        return matches

    def _thumbnail(self, result: dict[str, Any]) -> Image:
        """The result's picture, made small and square.

        Raises:
            ToolError: it cannot be had.
        """
        side = self._config.thumbnail_side
        address = str(result.get('thumbnailUrl') or result.get('imageUrl') or '')
        if address.startswith('data:'):
            try:
                data = base64.b64decode(address.partition(',')[2], validate=True)
            except ValueError:
                raise ToolError('caller', 'its data is not base64') from None
        else:
            data = self._fetcher.fetch(address, PICTURES).data
        pixels = self._store.decoder.read(data, MAX_THUMBNAIL_PIXELS)
        small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
        stored = self._store.add_encoded(encode(small), side, side)
        return Image(sha256=stored.sha256, width=side, height=side)
