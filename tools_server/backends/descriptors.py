"""Descriptors of pictures: short vectors that are alike for pictures that look alike, each a
picture's 16×16 colour thumbnail without its mean.

Likeness of two thumbnails a and b is 2⟨a, b⟩ / (|a|² + |b|²): 1 for equal ones, near 0 for
unrelated ones, and below the cosine where one has much less contrast than the other, so that plain
walls and open sea resemble nothing.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 16
MOST_SIDE = 2_800  # pixels; sums over a larger picture do not fit into 32 bits
# An entity seldom fills a proposed rectangle exactly: frames, mats and borders of equal width lie
# around it. These are the widths tried, as fractions of the rectangle's shorter side.
INSETS = (0.0, 0.02, 0.04, 0.07, 0.10, 0.13, 0.16, 0.20, 0.24)
# Parts of the whole picture that are tried as they are: sizes, each at three by three places.
WINDOWS = (0.94, 0.88, 0.82, 0.75, 0.68)


def describe(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Descriptors of parts of a picture.

    Args:
        image: [height, width, 3] uint8, at most 2,800 × 2,800 pixels (sums are 32-bit).
        boxes: [n, 4] of left, top, right, bottom in pixels, at least one pixel wide and high.

    Returns:
        [n, 768] float32: mean colours of the cells of a 16×16 grid, without their common mean.
    """
    # box means from four look-ups, however large the box
    sums = cv2.integral(image, sdepth=cv2.CV_32S)
    grid = np.linspace(0.0, 1.0, SIDE + 1)
    columns = np.rint(boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * grid).astype(np.intp)
    rows = np.rint(boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * grid).astype(np.intp)
    # A cell of a very small box may be empty after rounding: it then takes the pixel at its place.
    x0 = np.minimum(columns[:, :-1], image.shape[1] - 1)
    y0 = np.minimum(rows[:, :-1], image.shape[0] - 1)
    x1, y1 = np.maximum(columns[:, 1:], x0 + 1), np.maximum(rows[:, 1:], y0 + 1)
    x0, x1, y0, y1 = x0[:, None, :], x1[:, None, :], y0[:, :, None], y1[:, :, None]
    cells = (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]).astype(np.float32)
    cells /= ((x1 - x0) * (y1 - y0))[..., None]
    vectors = cells.reshape(len(boxes), -1)
    return vectors - vectors.mean(axis=1, keepdims=True)


def likeness(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Likeness of every query to every gallery picture: [n, d] and [m, d] to [n, m], from -1 to 1."""
    energy = (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1)
    return 2 * (queries @ gallery.T) / np.maximum(energy, 1e-6)


def inset_boxes(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A rectangle and those inside it at equal distance from its sides.

    Args:
        left: first column, in pixels.
        top: first row.
        right: column after the last.
        bottom: row after the last.

    Returns:
        [len(INSETS), 4] left, top, right, bottom in pixels.
    """
    margin = np.asarray(INSETS) * min(right - left, bottom - top)
    return np.stack([left + margin, top + margin, right - margin, bottom - margin], axis=1)


def window_boxes(width: int, height: int) -> np.ndarray:
    """Large parts of a picture, for a query cut a little too generously: [n, 4] in pixels."""
    shares, x, y = (
        grid.ravel()
        for grid in np.meshgrid(WINDOWS, (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), indexing='ij')
    )
    left, top = x * (1 - shares) * width, y * (1 - shares) * height
    return np.stack([left, top, left + shares * width, top + shares * height], axis=1)
