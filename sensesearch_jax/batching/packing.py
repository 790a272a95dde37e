"""Moves tokens between suffixes padded to one length, which attention wants, and one run of tokens
per row, which is all that the layers' matrices need to see.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from sensesearch_jax.batching.length_bucketing import FINE, bucket


def packed(
    x: Shaped[Array, 'b g s *rest'], packing: Packing | None
) -> Shaped[Array, 'b g s *rest']:
    """What the suffixes' tokens have, as one run per row [B, 1, N, …]; spare places get 0.

    As it is without packing.
    """
    if packing is None:
        return x
    return moved(x.reshape(len(x), -1, *x.shape[3:]), packing.index, packing.inverse)[:, None]


def unpacked(
    x: Shaped[Array, 'b g s *rest'], packing: Packing | None, lanes: tuple[int, int]
) -> Shaped[Array, 'b g s *rest']:
    """`packed` undone: the suffixes' [B, G, S, …]; padding gets 0.

    Args:
        lanes: G and S.
    """
    if packing is None:
        return x
    return moved(x[:, 0], packing.inverse, packing.index).reshape(len(x), *lanes, *x.shape[3:])


@jax.custom_vjp
def moved(
    x: Shaped[Array, 'b m *rest'], index: Int[Array, 'b n'], inverse: Int[Array, 'b m']
) -> Shaped[Array, 'b n *rest']:
    """`x` of each row at `index`, and 0 where that is negative.

    Args:
        inverse: where in `index` each place of x stands, negative where nowhere. With it the
            gradient is such a move too, where automatic differentiation would scatter.
    """
    return _picked(x, index)


def _picked(x, index):
    found = jax.vmap(lambda row, places: row[places])(x, jnp.maximum(index, 0))
    return jnp.where((index >= 0).reshape(*index.shape, *[1] * (x.ndim - 2)), found, 0)


moved.defvjp(
    lambda x, index, inverse: (_picked(x, index), inverse),
    lambda inverse, cotangent: (_picked(cotangent, inverse), None, None),
)


class Packing(NamedTuple):
    """Each row's suffix tokens in one run of N, padding left out; −1 where nothing is."""

    index: Int[np.ndarray, 'b n']  # place among the row's G · S of each token of the run
    inverse: Int[np.ndarray, 'b m']  # place in the run of each of the G · S

    @classmethod
    def of(cls, valid: Bool[np.ndarray, 'b g s'], step: int) -> Packing:
        """Runs of one length out of few, `step` the smallest."""
        places = [np.flatnonzero(row) for row in valid]
        index = np.full(
            (len(valid), bucket(max(map(len, places), default=0), step, FINE)), -1, np.int32
        )
        inverse = np.full((len(valid), valid[0].size), -1, np.int32)
        for b, some in enumerate(places):
            index[b, : len(some)] = some
            inverse[b, some] = np.arange(len(some))
        return cls(index, inverse)
