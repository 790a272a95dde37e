"""Packing: the suffixes of a row, padded for attention, as one sequence without padding for the
layers' matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.runtime.mesh import constrain, sequence_shards


def packed(
    x: Shaped[Array, 'b g s *rest'], packing: Packing | None
) -> Shaped[Array, 'b g s *rest']:
    """Packed array [B, 1, N, …] of padded suffixes; spare places get 0. Without packing it is `x`."""
    if packing is None:
        return x
    return gathered(x.reshape(len(x), -1, *x.shape[3:]), packing.index, packing.inverse)[:, None]


def unpacked(
    x: Shaped[Array, 'b g s *rest'], packing: Packing | None, shape: tuple[int, int]
) -> Shaped[Array, 'b g s *rest']:
    """Padded suffixes [B, G, S, …] of a packed array, the inverse of `packed`; padding gets 0.

    Args:
        x: the packed array [B, 1, N, …]; without packing, the suffixes themselves.
        packing: where each token is; None if suffixes are not packed.
        shape: G and S.
    """
    if packing is None:
        return x
    return gathered(x[:, 0], packing.inverse, packing.index).reshape(len(x), *shape, *x.shape[3:])


@jax.custom_vjp
def gathered(
    x: Shaped[Array, 'b m *rest'], index: Int[Array, 'b n'], inverse: Int[Array, 'b m']
) -> Shaped[Array, 'b n *rest']:
    """Gather along each row: `x` at `index`, and 0 where that is negative.

    Args:
        x: one array of M places per row.
        index: place in `x` of each of the N results.
        inverse: place in the result of each of the M, negative for none. With it the gradient is a
            gather too, where automatic differentiation would scatter.
    """
    return _picked(x, index)


def _picked(x, index):
    if sequence_shards() > 1:  # each shard picks its part of the result out of all tokens
        x, index = constrain(x, ('rows', None)), constrain(index, ('rows', 'sequence'))
    found = jax.vmap(lambda row, at: row[at])(x, jnp.maximum(index, 0))
    return jnp.where((index >= 0).reshape(*index.shape, *[1] * (x.ndim - 2)), found, 0)


gathered.defvjp(
    lambda x, index, inverse: (_picked(x, index), inverse),
    lambda inverse, cotangent: (_picked(cotangent, inverse), None, None),
)


class Packing(NamedTuple):
    """Packing of each row's suffixes, padded to G · S places, into N; −1 where there is no token."""

    index: Int[np.ndarray, 'b n']  # padded place of each packed token
    inverse: Int[np.ndarray, 'b m']  # packed place of each padded token

    @classmethod
    def of(cls, valid: Bool[np.ndarray, 'b g s'], step: int) -> Packing:
        """Packing of the valid tokens, to one length N from the buckets of `step`."""
        rows = [np.flatnonzero(row) for row in valid]
        longest = max(map(len, rows), default=0)
        index = np.full((len(valid), bucket(longest, step, FINE)), -1, np.int32)
        inverse = np.full((len(valid), valid[0].size), -1, np.int32)
        for b, tokens in enumerate(rows):
            index[b, : len(tokens)] = tokens
            inverse[b, tokens] = np.arange(len(tokens))
        return cls(index, inverse)
