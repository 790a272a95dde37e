"""Pictures of invented paintings: parts of training paintings, mirrored, in other colours, put
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

SIDE = 384  # pixels of the longer side, as in the data folder
ASPECTS = (0.55, 1.8)  # width by height

Pixels = UInt8[np.ndarray, 'height width 3']


def draw_painting(rng: np.random.Generator, paintings: Sequence[Pixels]) -> Pixels:
    """A picture from one or two paintings, its longer side `SIDE` pixels.

    Args:
        rng: the only source of randomness.
        paintings: to take parts of.
    """
    aspect = float(np.exp(rng.uniform(*np.log(ASPECTS))))
    size = (SIDE, round(SIDE / aspect)) if aspect >= 1 else (round(SIDE * aspect), SIDE)
    picture = _part(rng, paintings, size)
    if rng.random() < 0.65:
        picture = _composed(rng, picture, _part(rng, paintings, size))
    return picture


def _part(rng, paintings: Sequence[Pixels], size: tuple[int, int]) -> Pixels:
    """A part of some painting at that size, perhaps mirrored, in other colours."""
    pixels = paintings[rng.integers(len(paintings))]
    height, width = pixels.shape[:2]
    share = rng.uniform(0.35, 1.0)
    wide = min(width, round(share * min(width, height * size[0] / size[1])))
    high = min(height, round(wide * size[1] / size[0]))
    left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    pixels = pixels[top : top + high, left : left + wide]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.15:
        pixels = pixels[::-1]
    return recoloured(
        rng, cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_CUBIC)
    )


def recoloured(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """The picture with its hues turned, more or less vivid, lighter or darker."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.6:
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(180))) % 180
    vivid = np.clip(np.arange(256) * rng.uniform(0.4, 1.5), 0, 255)
    tone = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(-0.6, 0.6))
    hsv[..., 1] = vivid.astype(np.uint8)[hsv[..., 1]]
    hsv[..., 2] = tone.astype(np.uint8)[hsv[..., 2]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _composed(rng, first: Pixels, second: Pixels) -> Pixels:
    """Two pictures of one size as one: side by side, one within the other, or through each other."""
    height, width = first.shape[:2]
    mask = np.zeros((height, width), np.float32)
    choice = rng.random()
    if choice < 0.35:
        seam = int(width * rng.uniform(0.3, 0.7))
        mask[:, seam:] = 1
    elif choice < 0.55:
        seam = int(height * rng.uniform(0.35, 0.75))
        mask[seam:] = 1
    elif choice < 0.8:
        axes = (int(width * rng.uniform(0.15, 0.35)), int(height * rng.uniform(0.2, 0.4)))
        centre = (int(width * rng.uniform(0.3, 0.7)), int(height * rng.uniform(0.35, 0.65)))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    else:
        mask[:] = rng.uniform(0.35, 0.65)
    soft = int(rng.integers(3, 60)) | 1
    mask = cv2.GaussianBlur(mask, (soft, soft), 0)[..., None]
    return np.rint(first * (1 - mask) + second * mask).astype(np.uint8)
