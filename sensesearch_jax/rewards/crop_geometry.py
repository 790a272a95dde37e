"""Boxes of nested crops: which part of the original a crop shows, and whether it shows an object
well.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.trajectory import Turn

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# A crop this much longer per side (in fractions of the original) than the loose box around the
# object is too loose.
TOO_LOOSE = 0.15

_EPSILON = 1e-6


class Region(NamedTuple):
    """A part of one of the question's images.

    Args:
        image: its image_index.
        box: (left, top, right, bottom) in fractions of it.
    """

    image: int
    box: Box


def crop_regions(turns: Iterable[Turn], own: int) -> list[Region]:
    """The region of a question's image that each indexed image shows, in order of image_index.

    A crop's box is relative to the image that it was cropped from, which may be a crop itself.

    Args:
        turns: with the crops.
        own: number of the question's images, which come first and are whole.
    """
    regions = [Region(index, WHOLE) for index in range(1, own + 1)]
    for turn in turns:
        if (
            isinstance(turn.action, ImageCrop)
            and turn.observation is not None
            and turn.observation.new_images
        ):
            source = regions[turn.action.image_index - 1]
            regions.append(Region(source.image, absolute(turn.action.bbox, source.box)))
    return regions


def absolute(box: Sequence[float], region: Sequence[float]) -> Box:
    """A box in fractions of `region`, as fractions of the original that `region` is a box of."""
    width, height = region[2] - region[0], region[3] - region[1]
    x0, y0, x1, y1 = box
    return (
        region[0] + x0 * width,
        region[1] + y0 * height,
        region[0] + x1 * width,
        region[1] + y1 * height,
    )


def relative(box: Sequence[float], region: Sequence[float]) -> Box:
    """A box in fractions of the original as fractions of `region`; the inverse of `absolute`."""
    width, height = region[2] - region[0], region[3] - region[1]
    x0, y0, x1, y1 = box
    return (
        (x0 - region[0]) / width,
        (y0 - region[1]) / height,
        (x1 - region[0]) / width,
        (y1 - region[1]) / height,
    )


def holds(region: Sequence[float], box: Sequence[float]) -> bool:
    """Whether all of `box` lies within `region`."""
    return (
        region[0] <= box[0] + _EPSILON
        and region[1] <= box[1] + _EPSILON
        and region[2] >= box[2] - _EPSILON
        and region[3] >= box[3] - _EPSILON
    )


def fits(region: Sequence[float], box: Sequence[float]) -> bool:
    """Whether `region` shows all of `box` and is not too loose around it."""
    loose = loose_box(box)
    return holds(region, box) and all(
        region[i + 2] - region[i] <= loose[i + 2] - loose[i] + TOO_LOOSE for i in (0, 1)
    )


def loose_box(box: Sequence[float], margin: float = 0.03, step: float = 0.1) -> Box:
    """The smallest box on a grid that holds `box` and a margin on each side, within the picture.

    Args:
        box: (left, top, right, bottom) in fractions of the picture.
        margin: in the same fractions.
        step: of the grid, in the same fractions.
    """
    low = [max(0.0, math.floor((v - margin) / step + 1e-9) * step) for v in box[:2]]
    high = [min(1.0, math.ceil((v + margin) / step - 1e-9) * step) for v in box[2:]]
    return tuple(round(v, 6) for v in (*low, *high))


def write_box(box: Sequence[float]) -> str:
    """A box in words: fractions with one decimal."""
    return '[' + ', '.join(f'{v:.1f}' for v in box) + ']'
