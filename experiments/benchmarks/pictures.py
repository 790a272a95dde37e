"""Pictures of random noise, as files and by content hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sensesearch_jax.agent.trajectory import ImageRef


def noise(size: Sequence[int], kind: str = 'PNG', seed: int = 0, **how: Any) -> bytes:
    """A file of (width, height) pixels in smooth patches of random colours.

    Args:
        size: width and height in pixels.
        kind: of the file, as PIL names it.
        seed: of the colours.
        how: options of PIL's `save`.
    """
    colours = np.random.default_rng(seed).integers(
        0, 255, (size[1] // 28, size[0] // 28, 3), np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(colours).resize(size).save(file, kind, **how)
    return file.getvalue()


class Pictures:
    """Random pictures by content hash, in the place of a tool server."""

    def __init__(self):
        self.files: dict[str, bytes] = {}

    def draw(self, size: Sequence[int]) -> ImageRef:
        """A new picture of (width, height) pixels."""
        file = noise(size, seed=len(self.files))
        name = hashlib.sha256(file).hexdigest()
        self.files[name] = file
        return ImageRef(name, *size)

    def image(self, name: str) -> bytes:
        """A picture's file, as a tool client gives it."""
        return self.files[name]
