"""Image search in results that were fetched beforehand, as released data sets bring them: no service, no key.

Results belong to a picture by its content hash. A picture that none were fetched for finds nothing: a crop is
such a picture. The folder holds searches.jsonl (a picture's hash; title, size and place of the thumbnail of each
result), thumbnails.bin and, written last, index.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pil

from tools_server.backend_config import PrefetchedImages
from tools_server.config import ConfigError
from tools_server.images import ImageStore, StoredImage, kept_file
from tools_server.pictures.convert import read_image
from tools_server.pictures.encode import encode
from tools_server.schemas import Image, Match

VERSION = 1


class Result(NamedTuple):
    """A result that was fetched for a picture: its title and its thumbnail's file."""

    title: str
    thumbnail: bytes


class PrefetchedImageSearch:
    """The results that were fetched for a picture, in their order.

    Args:
        config: where they lie.
        store: takes the thumbnails, so that an answer can name them by content hash.

    Raises:
        ConfigError: no folder that `python -m tools_server.build_index results` finished.
    """

    name = 'prefetched'
    services = ()

    def __init__(self, config: PrefetchedImages, store: ImageStore):
        folder = config.index
        try:
            about = json.loads((folder / 'index.json').read_text())
            if about['version'] != VERSION:
                raise ValueError('version')
            lines = (folder / 'searches.jsonl').read_text(encoding='utf-8').splitlines()
            self._searches = {s['image']: s['results'] for s in map(json.loads, lines)}
            self._thumbnails = np.memmap(folder / 'thumbnails.bin', np.uint8, 'r')
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f'{folder} holds no prefetched results; '
                'make them with python -m tools_server.build_index results'
            ) from None
        listed = hashlib.sha256('\n'.join(lines).encode()).hexdigest()
        self.fingerprint = hashlib.sha256(f'{listed} {about["content"]}'.encode()).hexdigest()
        self._store = store

    def __len__(self) -> int:
        return len(self._searches)

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """See `backends.ImageSearch.search`."""
        return [
            Match(title=result['title'], thumbnail=self._thumbnail(result), score=1 / (1 + rank))
            for rank, result in enumerate(self._searches.get(image.sha256, ())[:top_k])
        ]

    def _thumbnail(self, result: dict[str, Any]) -> Image:
        start, end = result['thumbnail']
        width, height = result['size']
        stored = self._store.add_encoded(self._thumbnails[start:end].tobytes(), width, height)
        return Image(sha256=stored.sha256, width=width, height=height)


def write_searches(
    folder: Path, searches: Iterable[tuple[bytes, Sequence[Result]]], thumbnail_side: int
) -> int:
    """Writes results; returns for how many pictures.

    Args:
        folder: to write to, made if it is not there.
        searches: a picture's file and its results; of several for one picture the first count.
        thumbnail_side: longest side of the thumbnails, in pixels; larger ones are made smaller.

    Raises:
        ConfigError: there are none.
        ToolError: 'caller'; a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'index.json').unlink(missing_ok=True)
    seen: set[str] = set()
    places: dict[str, list[int]] = {}  # of a thumbnail, which many pictures may share
    place = 0
    with (
        open(folder / 'searches.jsonl', 'w', encoding='utf-8') as lines,
        open(folder / 'thumbnails.bin', 'wb') as thumbnails,
    ):
        for picture, results in searches:
            name = hashlib.sha256(kept_file(picture)).hexdigest()
            if name in seen or not results:
                continue
            seen.add(name)
            listed = []
            for result in results:
                data, size = _small(result.thumbnail, thumbnail_side)
                content = hashlib.sha256(data).hexdigest()
                if content not in places:
                    thumbnails.write(data)
                    places[content] = [place, place + len(data)]
                    place += len(data)
                listed.append({'title': result.title, 'thumbnail': places[content], 'size': size})
            search = {'image': name, 'results': listed}
            lines.write(json.dumps(search, ensure_ascii=False) + '\n')
    if not seen:
        raise ConfigError('no picture has prefetched results')
    content = hashlib.sha256('\n'.join(places).encode()).hexdigest()
    about = {'version': VERSION, 'pictures': len(seen), 'content': content}
    (folder / 'index.json').write_text(json.dumps(about))
    return len(seen)


def _small(data: bytes, side: int) -> tuple[bytes, tuple[int, int]]:
    """A thumbnail's file as an upright JPEG, and its width and height."""
    image = read_image(data, max_pixels=None)
    image.thumbnail((side, side), Pil.Resampling.LANCZOS)
    return encode(np.asarray(image)), image.size
