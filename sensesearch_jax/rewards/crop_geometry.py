"""Boxes of nested crops: which part of the original a crop shows, and whether it shows an object
well.
"""

import math
from collections.abc import Iterable, Sequence

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.trajectory import Turn

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# A crop this much longer per side (in fractions of the original) than the loose box around the
# object is too loose.
TOO_LOOSE = 0.15

_EPSILON = 1e-6


def crop_frames(turns: Iterable[Turn]) -> list[Box]:
    """The region of the original that each indexed image shows, in order of image_index.

    A crop's box is relative to the image that it was cropped from, which may be a crop itself.

    Returns:
        (left, top, right, bottom) in fractions of the original; that of the original itself first.
    """
    frames = [WHOLE]
    for turn in turns:
        if (
            isinstance(turn.action, ImageCrop)
            and turn.observation is not None
            and turn.observation.new_images
        ):
            frames.append(absolute(turn.action.bbox, frames[turn.action.image_index - 1]))
    return frames


def absolute(box: Sequence[float], frame: Sequence[float]) -> Box:
    """A box in fractions of `frame`, as fractions of the original that `frame` is a box of."""
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    x0, y0, x1, y1 = box
    return (
        frame[0] + x0 * width,
        frame[1] + y0 * height,
        frame[0] + x1 * width,
        frame[1] + y1 * height,
    )


def relative(box: Sequence[float], frame: Sequence[float]) -> Box:
    """A box in fractions of the original as fractions of `frame`; the inverse of `absolute`."""
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    x0, y0, x1, y1 = box
    return (
        (x0 - frame[0]) / width,
        (y0 - frame[1]) / height,
        (x1 - frame[0]) / width,
        (y1 - frame[1]) / height,
    )


def holds(frame: Sequence[float], box: Sequence[float]) -> bool:
    """Whether all of `box` lies within `frame`."""
    return (
        frame[0] <= box[0] + _EPSILON
        and frame[1] <= box[1] + _EPSILON
        and frame[2] >= box[2] - _EPSILON
        and frame[3] >= box[3] - _EPSILON
    )


def fits(frame: Sequence[float], box: Sequence[float]) -> bool:
    """Whether `frame` shows all of `box` and is not too loose around it."""
    loose = loose_box(box)
    return holds(frame, box) and all(
        frame[i + 2] - frame[i] <= loose[i + 2] - loose[i] + TOO_LOOSE for i in (0, 1)
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
