"""Finds picture-like rectangles in a photograph: framed paintings on a wall, flags and stickers on
a map, and such.

A picture in a picture has four long, straight, axis-parallel borders; texture, terrain and brush
strokes have not. So: brightness steps are averaged along the direction of a border, straight runs
of them become line segments, two parallel segments with the same ends span a candidate, and a
candidate stays if all four of its sides carry steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Smallest steps between neighbouring rows (0–255, averaged along the line) that count as a border.
# The low one finds a dark frame on a dark wall; the high one keeps a crisp border apart from the
# texture that touches it.
STEPS = (14, 48)
AVERAGED = 9  # pixels along the line over which a step is averaged
GAP = 7  # a border may be interrupted for fewer pixels than this
SHORTEST = 20  # segments shorter than this are ignored, in pixels
SLACK = 7  # how far the ends of two opposite borders may differ, in pixels
# offsets at which the border of a side is looked for, in pixels
NEARBY = (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)
SIDE_SUPPORT = 0.45  # lowest share of each side that must carry steps
MEAN_SUPPORT = 0.8  # lowest mean share over the four sides
MOST_SEGMENTS = 400  # per direction, the longest ones


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels: columns left to right-1, rows top to bottom-1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top


def find_regions(
    image: np.ndarray, min_side: int, min_area: float = 0.0, limit: int = 24
) -> list[Region]:
    """Proposes rectangles, best supported first; near-duplicates are proposed once.

    Args:
        image: [height, width, 3] uint8.
        min_side: smallest side of a proposal in pixels.
        min_area: smallest area of a proposal in square pixels.
        limit: most proposals returned.
    """
    height, width = image.shape[:2]
    steps = _steps(image), _steps(cv2.transpose(image))  # transposed: its rows are columns
    boxes, scores = [], []
    for threshold in STEPS:
        lying, standing = (_border_map(step, threshold) for step in steps)
        spanned = np.concatenate(
            [_spanned(_segments(lying)), _spanned(_segments(standing))[:, [1, 0, 3, 2]]]
        )
        sizes = spanned[:, 2:] - spanned[:, :2] + 2 * max(NEARBY)  # as large as it can still become
        spanned = spanned[(sizes.min(axis=1) >= min_side) & (sizes.prod(axis=1) >= min_area)]
        left, top, right, bottom = spanned.T
        (top, above), (bottom, below) = (_fit(lying, row, left, right) for row in (top, bottom))
        (left, before), (right, behind) = (
            _fit(standing, column, top, bottom) for column in (left, right)
        )
        shares = np.stack([above, below, before, behind])
        sizes = np.stack([right - left, bottom - top])
        good = (shares.min(axis=0) >= SIDE_SUPPORT) & (shares.mean(axis=0) >= MEAN_SUPPORT)
        good &= (sizes.min(axis=0) >= min_side) & (sizes.prod(axis=0) >= min_area)
        good &= sizes.prod(axis=0) < 0.98 * height * width  # that is the picture itself
        boxes.append(np.stack([left, top, right, bottom], axis=1)[good])
        scores.append(shares.mean(axis=0)[good])
    boxes, score = np.concatenate(boxes), np.concatenate(scores)
    kept: dict[tuple[int, ...], Region] = {}
    for index in np.argsort(-score, kind='stable'):
        kept.setdefault(tuple(np.round(boxes[index] / 3)), Region(*(int(v) for v in boxes[index])))
        if len(kept) == limit:
            break
    return list(kept.values())


def _steps(image: np.ndarray) -> np.ndarray:
    """Steps between rows y-1 and y averaged along the row, where largest: [height, width]."""
    step = np.zeros(image.shape[:2], np.uint8)
    red, green, blue = cv2.split(cv2.absdiff(image[1:], image[:-1]))
    step[1:] = cv2.max(cv2.max(red, green), blue)
    step = cv2.blur(step, (AVERAGED, 1))
    peak = cv2.dilate(step, np.ones((3, 1), np.uint8))
    return cv2.bitwise_and(step, step, mask=cv2.compare(step, peak, cv2.CMP_EQ))


def _border_map(steps: np.ndarray, threshold: int) -> np.ndarray:
    """Marks straight borders: [height, width] of 0 or 1."""
    marks = (steps >= threshold).astype(np.uint8)
    marks = cv2.morphologyEx(marks, cv2.MORPH_CLOSE, np.ones((1, GAP), np.uint8))
    return cv2.morphologyEx(marks, cv2.MORPH_OPEN, np.ones((1, SHORTEST), np.uint8))


def _segments(borders: np.ndarray) -> np.ndarray:
    """The runs of a border map, longest first: [n, 3] of row, first column, column after the last."""
    padded = np.pad(borders, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    order = np.argsort(starts - ends, kind='stable')[:MOST_SEGMENTS]
    return np.stack([rows, starts, ends], axis=1)[order]


def _spanned(segments: np.ndarray) -> np.ndarray:
    """Rectangles between two segments with about the same ends: [n, 4] of left, top, right, bottom."""
    row, start, end = segments.T
    alike = (
        (abs(start[:, None] - start) <= SLACK)
        & (abs(end[:, None] - end) <= SLACK)
        & (row[:, None] < row)
    )
    upper, lower = np.nonzero(alike)
    left = (start[upper] + start[lower] + 1) // 2
    right = (end[upper] + end[lower]) // 2
    return np.stack([left, row[upper], right, row[lower]], axis=1)


def _fit(
    borders: np.ndarray, place: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves one side of each rectangle to the border nearby that carries it best.

    Args:
        borders: [height, width] of 0 or 1, marking horizontal borders.
        place: [n] row of the side.
        start: [n] its first column.
        end: [n] the column after its last.

    Returns:
        [n] the row it fits best, and [n] the share of the side that carries a border there (1 px up
        or down allowed).
    """
    thick = cv2.dilate(borders, np.ones((3, 1), np.uint8))
    along = np.pad(np.cumsum(thick, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    rows = np.clip(place + np.array(NEARBY)[:, None], 0, len(borders) - 1)
    shares = (along[rows, end] - along[rows, start]) / np.maximum(end - start, 1)
    best = shares.argmax(axis=0)
    numbers = np.arange(len(place))
    return rows[best, numbers], shares[best, numbers]
