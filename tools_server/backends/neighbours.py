"""Known pictures nearest to descriptors of a query: by comparing all of them, or by an approximate
index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tools_server.backends.descriptors import likeness


class Neighbours(Protocol):
    """Finds known pictures by descriptor."""

    def nearest(
        self, queries: np.ndarray, owner: np.ndarray, count: int, least: float
    ) -> Iterator[tuple[int, int, float]]:
        """The known pictures most like each owner's descriptors.

        Args:
            queries: [n, d] descriptors.
            owner: [n] number of the region that a descriptor belongs to, ascending.
            count: at most so many per owner.
            least: likeness below which a picture is left out.

        Yields:
            (owner, number of the known picture, likeness), for each owner best first.
        """


class ExactNeighbours:
    """Compares with every known picture.

    Args:
        vectors: [m, d] descriptors of the known pictures.
    """

    def __init__(self, vectors: np.ndarray):
        self._vectors = vectors

    def nearest(
        self, queries: np.ndarray, owner: np.ndarray, count: int, least: float
    ) -> Iterator[tuple[int, int, float]]:
        """See `Neighbours.nearest`."""
        alike = likeness(queries, self._vectors)
        for number in range(owner[-1] + 1):
            scores = alike[owner == number].max(axis=0)
            for index in np.argsort(-scores, kind='stable')[:count]:
                if scores[index] < least:
                    break
                yield number, int(index), float(scores[index])


class ApproximateNeighbours:
    """Asks an index of directions for candidates, and compares with those exactly.

    Args:
        index: a usearch index of the known pictures' descriptors by cosine.
        vectors: [m, d] the descriptors themselves, which may be a memory map.
    """

    def __init__(self, index, vectors: np.ndarray):
        self._index = index
        self._vectors = vectors

    def nearest(
        self, queries: np.ndarray, owner: np.ndarray, count: int, least: float
    ) -> Iterator[tuple[int, int, float]]:
        """See `Neighbours.nearest`."""
        found = self._index.search(queries, min(count, len(self._index)), threads=1)
        keys = np.atleast_2d(found.keys)
        for number in range(owner[-1] + 1):
            mine = owner == number
            candidates = np.unique(keys[mine])
            candidates = candidates[candidates < len(self._vectors)].astype(np.intp)
            if not len(candidates):
                continue
            scores = likeness(queries[mine], self._vectors[candidates]).max(axis=0)
            for place in np.argsort(-scores, kind='stable')[:count]:
                if scores[place] < least:
                    break
                yield number, int(candidates[place]), float(scores[place])
