"""Image search in an index on disk, for galleries that are too large to describe and compare one by
one.

The folder holds: pictures.jsonl (title, and where the thumbnail's file lies in the next),
thumbnails.bin, vectors.npy, neighbours.usearch, and, written last, index.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from usearch.index import Index

from tools_server.backend_config import IndexedImages
from tools_server.backends.descriptors import SIDE
from tools_server.backends.image_matcher import PictureMatcher
from tools_server.backends.neighbours import ApproximateNeighbours
from tools_server.config import ConfigError
from tools_server.images import ImageStore, StoredImage
from tools_server.schemas import Image, Match

WIDTH = SIDE * SIDE * 3
VERSION = 1


class IndexedImageSearch:
    """Nearest pictures of an index for the regions of a query picture.

    Raises:
        ConfigError: no index that `python -m tools_server.build_index images` finished.
    """

    name = 'index'
    services = ()

    def __init__(self, config: IndexedImages, store: ImageStore):
        folder = config.index
        try:
            about = json.loads((folder / 'index.json').read_text())
            if about['version'] != VERSION:
                raise ValueError('version')
            lines = (folder / 'pictures.jsonl').read_text(encoding='utf-8').splitlines()
            # Titles, and the length of every thumbnail's file; what is built anew says what is in
            # it.
            about['listed'] = hashlib.sha256('\n'.join(lines).encode()).hexdigest()
            self.fingerprint = hashlib.sha256(
                json.dumps(about, sort_keys=True).encode()
            ).hexdigest()
            self._pictures = [json.loads(line) for line in lines]
            self._thumbnails = np.memmap(folder / 'thumbnails.bin', np.uint8, 'r')
            vectors = np.load(folder / 'vectors.npy', mmap_mode='r')
            index = Index.restore(str(folder / 'neighbours.usearch'), view=True)
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f'{folder} is no picture index; build one with python -m tools_server.build_index images'
            ) from None
        self._side = about['thumbnail_side']
        self._store = store
        self._matcher = PictureMatcher(config, ApproximateNeighbours(index, vectors))

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """See `backends.ImageSearch.search`."""
        return [
            Match(
                title=self._pictures[index]['title'],
                thumbnail=self._thumbnail(index),
                score=likeness,
            )
            for index, likeness in self._matcher.search(image.pixels(), top_k)
        ]

    def _thumbnail(self, index: int) -> Image:
        start, end = self._pictures[index]['thumbnail']
        stored = self._store.add_encoded(
            self._thumbnails[start:end].tobytes(), self._side, self._side
        )
        return Image(sha256=stored.sha256, width=self._side, height=self._side)


def write_index(
    folder: Path, pictures: Iterable[tuple[str, np.ndarray, bytes]], thumbnail_side: int
) -> int:
    """Writes an index of pictures; returns how many there are.

    Args:
        folder: to write to, made if it is not there.
        pictures: title, descriptor and thumbnail's file of each.
        thumbnail_side: of the thumbnails, in pixels.

    Raises:
        ConfigError: there are no pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'index.json').unlink(missing_ok=True)
    index = Index(ndim=WIDTH, metric='cos', dtype='f16')
    vectors, place, content = [], 0, hashlib.sha256()
    with (
        open(folder / 'pictures.jsonl', 'w', encoding='utf-8') as lines,
        open(folder / 'thumbnails.bin', 'wb') as thumbnails,
    ):
        for title, vector, thumbnail in pictures:
            index.add(len(vectors), vector)
            vectors.append(vector.astype(np.float32))
            record = {'title': title, 'thumbnail': [place, place + len(thumbnail)]}
            lines.write(json.dumps(record, ensure_ascii=False) + '\n')
            thumbnails.write(thumbnail)
            content.update(vectors[-1].tobytes() + thumbnail)
            place += len(thumbnail)
    if not vectors:
        raise ConfigError('there are no pictures to index')
    np.save(folder / 'vectors.npy', np.stack(vectors))
    index.save(str(folder / 'neighbours.usearch'))
    about = {'version': VERSION, 'pictures': len(vectors), 'thumbnail_side': thumbnail_side}
    about['content'] = content.hexdigest()
    (folder / 'index.json').write_text(json.dumps(about))
    return len(vectors)
