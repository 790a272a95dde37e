"""Bucketing by length: trajectories of like length share a batch, and padded lengths are few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar('T')


def by_length(
    batches: Sequence[Sequence[T]], length: Callable[[T], Any], window: int, seed: int
) -> list[list[T]]:
    """Batches of the same items, each sorted by length.

    Args:
        batches: in a shuffled order, all of one size but for the last.
        length: sort key of an item.
        window: number of consecutive batches that are sorted together, divided again, and put in a
            random order: lengths differ less within a batch and more between batches. With 1 every
            batch keeps its items.
        seed: of the random order.
    """
    out = []
    for first in range(0, len(batches), window):
        chosen = batches[first : first + window]
        items = sorted(itertools.chain(*chosen), key=length)
        again = [items[i : i + len(chosen[0])] for i in range(0, len(items), len(chosen[0]))]
        out += [again[i] for i in np.random.default_rng([seed, first]).permutation(len(again))]
    return out


def balanced(items: Sequence[T], length: Callable[[T], int], most: int) -> list[list[T]]:
    """Rows of like total length: the longest item first, each into the row that is shortest so far.

    Args:
        items: in any order.
        length: of an item.
        most: items of a row. There are as few rows as that allows.
    """
    rows: list[list[T]] = [[] for _ in range(-(-len(items) // most))]
    for item in sorted(items, key=length, reverse=True):
        free = (row for row in rows if len(row) < most)
        min(free, key=lambda row: sum(map(length, row))).append(item)
    return rows


# sizes per doubling of what every layer runs over; padding there costs more than a program does
FINE = 8


def bucket(length: int, step: int, per_doubling: int = 2) -> int:
    """Padded length: the smallest that holds `length` of 1, 2, 3, 4, 6, 8, 12 … times `step`, or
    finer.

    Args:
        length: number of tokens or other places, at least 0.
        step: the smallest padded length, which all are multiples of.
        per_doubling: sizes between one power of two and the next, itself a power of two. Beyond as
            many steps at most one part in per_doubling + 1 of a size is padding.
    """
    steps = max(1, -(-length // step))
    unit = max(1, (1 << (steps - 1).bit_length() >> 1) // per_doubling)
    return -(-steps // unit) * unit * step
