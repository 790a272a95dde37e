"""Looks: whether a picture resembles a known one in the eyes of the image search."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, UInt8

from tools_server.backends import descriptors

LIKE = 0.85  # likeness from which a picture counts as like another
SAME = 0.93  # and from which the image search takes it for the same, see configs/tools_pocket.yaml
COARSE = 4  # cells of the image search's descriptors that one coarse cell joins, per side

Pixels = UInt8[np.ndarray, 'height width 3']


class Looks:
    """Descriptors of known pictures, whole and in parts.

    Args:
        pictures: the known ones.
    """

    def __init__(self, pictures: Iterable[Pixels]):
        pictures = list(pictures)
        self._whole = _Known(np.concatenate([whole(pixels) for pixels in pictures]))
        self._parts = _Known(np.concatenate([parts(pixels) for pixels in pictures]))

    def like(self, pixels: Pixels, least: float = LIKE) -> bool:
        """Whether a picture is like a part of a known one, or a part of it like a known one.

        Args:
            pixels: the picture.
            least: likeness from which that is so.
        """
        return self._parts.like(whole(pixels), least) or self._whole.like(parts(pixels), least)


class _Known:
    """Descriptors [m, d] to compare with."""

    def __init__(self, vectors: Float32[np.ndarray, 'm d']):
        self.vectors, self.energy, self.coarse = vectors, (vectors**2).sum(1), _coarse(vectors)

    def like(self, queries: Float32[np.ndarray, 'n d'], least: float) -> bool:
        """Whether any query is like any of them.

        A likeness is 1 − |a − b|² / (|a|² + |b|²), and a projection never lengthens a − b, so that
        most pairs are ruled out by their coarse descriptors, sixteen times shorter.

        Args:
            queries: descriptors.
            least: likeness.
        """
        coarse = _coarse(queries)
        energy = (queries**2).sum(1)[:, None] + self.energy
        apart = (coarse**2).sum(1)[:, None] + (self.coarse**2).sum(1) - 2 * coarse @ self.coarse.T
        near = np.argwhere(apart <= (1 - least) * energy + 1e-3)
        for query in np.unique(near[:, 0]):
            known = self.vectors[near[near[:, 0] == query, 1]]
            if descriptors.likeness(queries[query : query + 1], known).max() >= least:
                return True
        return False


def _coarse(vectors: Float32[np.ndarray, 'n d']) -> Float32[np.ndarray, 'n c']:
    """A projection of descriptors onto the means of blocks of cells."""
    side = descriptors.SIDE // COARSE
    blocks = vectors.reshape(-1, side, COARSE, side, COARSE, 3)
    return blocks.mean((2, 4)).reshape(len(vectors), -1) * COARSE


def whole(pixels: Pixels) -> Float32[np.ndarray, '1 d']:
    """The descriptor of the whole picture."""
    height, width = pixels.shape[:2]
    return descriptors.describe(pixels, np.array([[0.0, 0.0, width, height]]))


def parts(pixels: Pixels) -> Float32[np.ndarray, 'n d']:
    """Descriptors of the picture and of its parts that an image search looks up."""
    height, width = pixels.shape[:2]
    boxes = [descriptors.inset_boxes(0, 0, width, height), descriptors.window_boxes(width, height)]
    return descriptors.describe(pixels, np.concatenate(boxes))


class WholeLooks:
    """Pictures so far, to tell whether another looks the same as one of them; whole ones alone.

    Args:
        pictures: the first ones.
    """

    def __init__(self, pictures: Iterable[Pixels]):
        self._vectors = np.concatenate([whole(pixels) for pixels in pictures])
        self._count = len(self._vectors)

    def like(self, pixels: Pixels) -> bool:
        """Whether the image search would take a picture for one of them."""
        found = descriptors.likeness(whole(pixels), self._vectors[: self._count])
        return bool(found.max() >= SAME)

    def add(self, pixels: Pixels) -> None:
        """Adds a picture."""
        if self._count == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._vectors[self._count] = whole(pixels)[0]
        self._count += 1
