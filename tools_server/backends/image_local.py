"""Image search in a list of known pictures, described anew at every start; every one is compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from tools_server.backend_config import LocalImages
from tools_server.backends import descriptors
from tools_server.backends.image_matcher import PictureMatcher
from tools_server.backends.neighbours import ExactNeighbours
from tools_server.config import ConfigError
from tools_server.failures import ToolError
from tools_server.images import ImageStore, StoredImage
from tools_server.pictures.convert import read_rgb
from tools_server.pictures.encode import encode
from tools_server.schemas import Image, Match


class LocalImageSearch:
    """Nearest gallery pictures of the regions of a query picture.

    Args:
        config: where the gallery is and what counts as large enough and alike.
        store: takes the thumbnails, so that an answer can name them by content hash.

    Raises:
        ConfigError: the gallery's list or one of its pictures cannot be read.
    """

    name = 'local'
    services = ()

    def __init__(self, config: LocalImages, store: ImageStore):
        self._store = store
        self._titles: list[str] = []
        self._files: list[Path] = []
        self._thumbnails: list[Image] = []
        vectors = []
        content = hashlib.sha256()
        side = config.thumbnail_side
        for title, file in read_gallery(config.gallery):
            data = file.read_bytes()
            content.update(
                f'{len(title)} {title}{len(data)} '.encode('utf-8', 'surrogatepass') + data
            )
            try:
                vector, thumbnail = describe_picture(data, side)
            except ToolError as error:
                raise ConfigError(
                    f'{config.gallery}: {file} cannot be used: {error.message}'
                ) from None
            vectors.append(vector)
            stored = store.add_encoded(thumbnail, side, side)
            self._titles.append(title)
            self._files.append(file)
            self._thumbnails.append(Image(sha256=stored.sha256, width=side, height=side))
        self.fingerprint = content.hexdigest()
        self._matcher = PictureMatcher(config, ExactNeighbours(np.stack(vectors)))

    def __len__(self) -> int:
        return len(self._titles)

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """See `backends.ImageSearch.search`."""
        return self.search_pixels(image.pixels(), top_k)

    def search_pixels(self, pixels: np.ndarray, top_k: int) -> list[Match]:
        """The search itself, on [height, width, 3] uint8 RGB pixels."""
        return [
            Match(title=self._titles[index], thumbnail=self._thumbnail(index), score=likeness)
            for index, likeness in self._matcher.search(pixels, top_k)
        ]

    def _thumbnail(self, index: int) -> Image:
        """Kept since the start, or made again where its file was removed."""
        thumbnail = self._thumbnails[index]
        if not self._store.folder.has(thumbnail.sha256):
            try:
                data = describe_picture(self._files[index].read_bytes(), thumbnail.width)[1]
            except OSError as error:
                raise ToolError(
                    'unavailable', f'a picture of the gallery cannot be read: {error.strerror}'
                ) from None
            self._store.add_encoded(data, thumbnail.width, thumbnail.height)
        return thumbnail


def describe_picture(data: bytes, thumbnail_side: int) -> tuple[np.ndarray, bytes]:
    """Descriptor [d] of a picture file as a whole, and its square thumbnail's file.

    Raises:
        ToolError: 'caller'; it is no picture.
    """
    pixels = read_rgb(data, max_pixels=None)
    height, width = pixels.shape[:2]
    if max(height, width) > descriptors.MOST_SIDE:
        scale = descriptors.MOST_SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        height, width = pixels.shape[:2]
    vector = descriptors.describe(pixels, np.array([[0.0, 0.0, width, height]]))[0]
    small = cv2.resize(pixels, (thumbnail_side, thumbnail_side), interpolation=cv2.INTER_AREA)
    return vector, encode(small)


def read_gallery(path: Path) -> list[tuple[str, Path]]:
    """Titles and files of a gallery list.

    Raises:
        ConfigError: a line is no such entry, a picture is missing, or there are none.
    """
    entries = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            title, file = str(entry['title']), path.parent / entry['file']
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                f"{path}, line {number}: expected an object with 'title' and 'file'"
            ) from None
        if not file.is_file():
            raise ConfigError(f'{path}, line {number}: there is no picture {file}')
        entries.append((title, file))
    if not entries:
        raise ConfigError(f'{path} lists no pictures')
    return entries
