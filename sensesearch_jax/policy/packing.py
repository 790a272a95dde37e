"""Moves tokens between suffixes padded to one length, which attention wants, and one run of tokens per row, which is
all that the layers' matrices need to see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from sensesearch_jax.inputs.groups import Packing


def packed(x: Shaped[Array, 'b g s *rest'], packing: Packing | None) -> Shaped[Array, 'b g s *rest']:
    """What the suffixes' tokens have, as one run per row [B, 1, N, …]; spare places get 0. As it is without packing."""
    if packing is None:
        return x
    return moved(x.reshape(len(x), -1, *x.shape[3:]), packing.index, packing.inverse)[:, None]


def spread(x: Shaped[Array, 'b g s *rest'], packing: Packing | None, lanes: tuple[int, int]) -> Shaped[Array, 'b g s *rest']:
    """`packed` undone: the suffixes' [B, G, S, …]; padding gets 0.

    Args:
        lanes: G and S.
    """
    if packing is None:
        return x
    return moved(x[:, 0], packing.inverse, packing.index).reshape(len(x), *lanes, *x.shape[3:])


@jax.custom_vjp
def moved(x: Shaped[Array, 'b m *rest'], index: Int[Array, 'b n'], inverse: Int[Array, 'b m']) -> Shaped[Array, 'b n *rest']:
    """`x` of each row at `index`, and 0 where that is negative.

    Args:
        inverse: where in `index` each place of x stands, negative where nowhere. With it the gradient is such a move
            too, where automatic differentiation would scatter.
    """
    return _picked(x, index)


def _picked(x, index):
    found = jax.vmap(lambda row, places: row[places])(x, jnp.maximum(index, 0))
    return jnp.where((index >= 0).reshape(*index.shape, *[1] * (x.ndim - 2)), found, 0)


moved.defvjp(lambda x, index, inverse: (_picked(x, index), inverse),
             lambda inverse, slope: (_picked(slope, inverse), None, None))
