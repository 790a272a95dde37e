"""Moves tokens between suffixes padded to one length, which attention wants, and one run of tokens per row, which is
all that the layers' matrices need to see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


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
