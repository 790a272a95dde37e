"""Image search on the web: Google Lens by Serper, given the address where this server shows the picture."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import cv2

from tools_server.backend_config import SerperLens
from tools_server.backends.outbound import SERPER_FIELDS, serper_results, serper_service
from tools_server.failures import ToolError
from tools_server.fetching.fetch import PICTURES, Fetcher
from tools_server.images import ImageStore, StoredImage
from tools_server.pictures.convert import read_rgb
from tools_server.pictures.encode import encode
from tools_server.schemas import Image, Match
from tools_server.signatures import picture_path

MAX_THUMBNAIL_PIXELS = 4_000_000


class SerperImageSearch:
    """`POST /lens {url}`; the organic results in their order, those whose thumbnail can be had."""

    name = 'serper'

    def __init__(self, config: SerperLens, store: ImageStore, token: str | None = None):
        self._config = config
        self._store = store
        self._token = token
        self._service = serper_service(config.base_url, config.api_key_env, config.timeout_s, config.limits)
        self.services = (self._service,)
        self._fetcher = Fetcher(config.timeout_s, config.allow_private_pages)

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """See `backends.ImageSearch.search`."""
        path = picture_path(image.sha256, self._token)
        answer = self._service.post('/lens', {'url': self._config.public_url + path}, SERPER_FIELDS)
        results = serper_results(answer)
        matches: list[Match] = []
        for rank, result in enumerate(results[: 2 * top_k]):  # some thumbnails cannot be had
            thumbnail = self._thumbnail(result)
            if thumbnail is not None:
                matches.append(
                    Match(title=str(result.get('title', '')), thumbnail=thumbnail, score=1 / (1 + rank))
                )
            if len(matches) == top_k:
                break
        return matches

    def _thumbnail(self, result: dict[str, Any]) -> Image | None:
        side = self._config.thumbnail_side
        try:
            address = str(result.get('thumbnailUrl') or result.get('imageUrl') or '')
            if address.startswith('data:'):
                data = base64.b64decode(address.partition(',')[2], validate=True)
            else:
                data = self._fetcher.fetch(address, PICTURES)
            small = cv2.resize(
                read_rgb(data, MAX_THUMBNAIL_PIXELS), (side, side), interpolation=cv2.INTER_AREA
            )
        except (ToolError, binascii.Error):
            return None
        stored = self._store.add_encoded(encode(small), side, side)
        return Image(sha256=stored.sha256, width=side, height=side)
