"""Image search by descriptors: the parts of a query picture are compared with known pictures.

As a reverse-image service does, it first shrinks what it is given to an upload size and then looks
up the picture as a whole and the picture-like rectangles in it that are large enough. So an object
is found in a crop around it at native resolution, and lost in the whole photograph of the scene.
"""

from __future__ import annotations

import cv2
import numpy as np

from tools_server.backend_config import PictureSearch
from tools_server.backends import descriptors
from tools_server.backends.neighbours import Neighbours
from tools_server.backends.regions import Region, find_regions

CANDIDATES = 8  # known pictures that one region may bring forward
# Among equally alike pictures the more prominent region wins; this is how little prominence weighs
# against likeness.
PROMINENCE_POWER = 0.1


class PictureMatcher:
    """Known pictures that look like regions of a query picture.

    Args:
        config: what counts as large enough and alike.
        neighbours: the known pictures' descriptors.
    """

    def __init__(self, config: PictureSearch, neighbours: Neighbours):
        self._config = config
        self._neighbours = neighbours

    def search(self, pixels: np.ndarray, top_k: int) -> list[tuple[int, float]]:
        """Numbers of known pictures and their likeness, best first.

        Args:
            pixels: [height, width, 3] uint8 RGB.
            top_k: at most so many.
        """
        pixels = _shrink(pixels, self._config.upload_side)
        height, width = pixels.shape[:2]
        regions = [Region(0, 0, width, height)]
        if min(width, height) >= self._config.min_region:
            regions += find_regions(
                pixels, self._config.min_region, self._config.min_share * width * height
            )
        boxes = [descriptors.inset_boxes(r.left, r.top, r.right, r.bottom) for r in regions]
        boxes[0] = np.concatenate([boxes[0], descriptors.window_boxes(width, height)])
        owner = np.repeat(np.arange(len(regions)), [len(b) for b in boxes])
        vectors = descriptors.describe(pixels, np.concatenate(boxes))
        best: dict[int, tuple[float, float]] = {}  # number of a known picture -> rank, likeness
        for number, index, likeness in self._neighbours.nearest(
            vectors, owner, CANDIDATES, self._config.min_similarity
        ):
            rank = _rank(likeness, regions[number], width, height)
            best[index] = max(best.get(index, (rank, likeness)), (rank, likeness))
        ordered = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:top_k]
        return [(index, round(likeness, 4)) for index, (_, likeness) in ordered]


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
