"""Pictures that are nearly the same, by the descriptors of the tool server's image search."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from sensesearch_jax.data.images import read_image
from tools_server.backends.descriptors import describe, likeness, window_boxes
from tools_server.pictures.convert import read_rgb

SIDE = 512  # pixels that the longer side is shrunk to before it is described


def description(reference: str) -> Float[np.ndarray, 'n d']:
    """Descriptors of a picture: the whole, its mirror image, and large parts of it.

    Raises:
        NoImage, ToolError: it cannot be read.
    """
    pixels = read_rgb(read_image(reference))
    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    whole = np.array([[0, 0, width, height]])
    return np.concatenate(
        [
            describe(pixels, np.concatenate([whole, window_boxes(width, height)])),
            describe(np.ascontiguousarray(pixels[:, ::-1]), whole),
        ]
    )


def alike(
    one: Float[np.ndarray, 'n d'], others: Float[np.ndarray, 'm n d']
) -> Float[np.ndarray, ' m']:
    """Likeness of a picture to each of several, from -1 to 1: the whole of either to any part of
    the other.
    """
    wholes = others[:, 0]
    of_one = likeness(one, wholes).max(axis=0)
    of_others = likeness(others.reshape(-1, others.shape[-1]), one[:1]).reshape(len(others), -1)
    return np.maximum(of_one, of_others.max(axis=1))
