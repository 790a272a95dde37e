"""Boxes on the coarse grid on which the pocket policy learns to zoom."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]


def loose_box(box: Sequence[float], margin: float = 0.03, step: float = 0.1) -> Box:
    """The smallest box on a grid of `step` that holds `box` with `margin` to spare on each side, within the picture.

    Args:
        box: (left, top, right, bottom) in fractions of the picture.
        margin: in the same fractions.
    """
    low = [max(0.0, math.floor((v - margin) / step + 1e-9) * step) for v in box[:2]]
    high = [min(1.0, math.ceil((v + margin) / step - 1e-9) * step) for v in box[2:]]
    return tuple(round(v, 6) for v in (*low, *high))


def write_box(box: Sequence[float]) -> str:
    """A box in words: fractions with one decimal."""
    return '[' + ', '.join(f'{v:.1f}' for v in box) + ']'
