"""Image search in a folder of known pictures, by their looks.

As a reverse-image service does, it first shrinks what it is given to an upload size and then looks up the
picture as a whole and the picture-like rectangles in it that are large enough. So an object is found in a
crop around it at native resolution, and lost in the whole photograph of the scene.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tools_server.backends import descriptors
from tools_server.backends.regions import Region, find_regions
from tools_server.config import ConfigError, LocalImages
from tools_server.images import ImageStore, StoredImage, encode, read_rgb
from tools_server.schemas import Image, Match

CANDIDATES = 8  # gallery pictures that one region may bring forward
# Among equally alike pictures the more prominent region wins; this is how little prominence weighs against
# likeness.
PROMINENCE_POWER = 0.1


class LocalImageSearch:
    """Nearest gallery pictures of the regions of a query picture.

    Args:
        config: where the gallery is and what counts as large enough and alike.
        store: takes the thumbnails, so that an answer can name them by content hash.

    Raises:
        ConfigError: the gallery's list or one of its pictures cannot be read.
    """

    name = 'local'

    def __init__(self, config: LocalImages, store: ImageStore):
        self._config = config
        self._titles: list[str] = []
        self._thumbnails: list[Image] = []
        vectors = []
        side = config.thumbnail_side
        for title, file in _read_gallery(config.gallery):
            pixels = read_rgb(file.read_bytes())
            height, width = pixels.shape[:2]
            vectors.append(descriptors.describe(pixels, np.array([[0.0, 0.0, width, height]]))[0])
            small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
            thumbnail = store.add_encoded(encode(small), side, side)
            self._titles.append(title)
            self._thumbnails.append(Image(sha256=thumbnail.sha256, width=side, height=side))
        self._vectors = np.stack(vectors)

    def __len__(self) -> int:
        return len(self._titles)

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        return self.search_pixels(image.pixels(), top_k)

    def search_pixels(self, pixels: np.ndarray, top_k: int) -> list[Match]:
        """The search itself, on [height, width, 3] uint8 RGB pixels."""
        pixels = _shrink(pixels, self._config.upload_side)
        height, width = pixels.shape[:2]
        regions = [Region(0, 0, width, height)]
        regions += find_regions(pixels, self._config.min_region, self._config.min_share * width * height)
        boxes = [descriptors.inset_boxes(r.left, r.top, r.right, r.bottom) for r in regions]
        boxes[0] = np.concatenate([boxes[0], descriptors.window_boxes(width, height)])
        owner = np.repeat(np.arange(len(regions)), [len(b) for b in boxes])
        alike = descriptors.likeness(descriptors.describe(pixels, np.concatenate(boxes)), self._vectors)
        best: dict[int, tuple[float, float]] = {}  # gallery index -> rank, likeness
        for number, region in enumerate(regions):
            scores = alike[owner == number].max(axis=0)
            for index in np.argsort(-scores, kind='stable')[:CANDIDATES]:
                likeness = float(scores[index])
                if likeness < self._config.min_similarity:
                    break
                rank = _rank(likeness, region, width, height)
                best[index] = max(best.get(index, (rank, likeness)), (rank, likeness))
        ordered = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:top_k]
        return [
            Match(title=self._titles[index], thumbnail=self._thumbnails[index], score=round(likeness, 4))
            for index, (_, likeness) in ordered
        ]


def _read_gallery(path: Path) -> list[tuple[str, Path]]:
    """Titles and files of a gallery list."""
    entries = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            title, file = str(entry['title']), path.parent / entry['file']
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{path}, line {number}: expected an object with 'title' and 'file'") from None
        if not file.is_file():
            raise ConfigError(f'{path}, line {number}: there is no picture {file}')
        entries.append((title, file))
    if not entries:
        raise ConfigError(f'{path} lists no pictures')
    return entries


def _rank(likeness: float, region: Region, width: int, height: int) -> float:
    """Likeness beyond chance times a weak function of how large and central the region is."""
    area = region.width * region.height / (width * height)
    off_x = abs(region.left + region.right - width) / width  # 0 in the middle, 1 at the rim
    off_y = abs(region.top + region.bottom - height) / height
    prominence = area * (1 - 0.5 * max(off_x, off_y))
    return (likeness - 0.7) * prominence**PROMINENCE_POWER


def _shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
