"""Keys and values that were computed before, as attention takes them; at half or a quarter of the
size as int8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int8

LARGEST = 127  # of an int8, either way
# names what a backward pass needs of attention beside its operands, for remat policies
ATTENDED = 'attended'
# score of what is not seen; finite, so that a query that sees nothing gives a finite (and unused)
# result
MASKED = -1e30


class KVCache(NamedTuple):
    """Keys and values computed earlier. The group axis g is G, or 1 where the whole group shares
    the cache.

    With a leading layer axis it is the cache of all layers. Heads stand before tokens, and keys
    the other way round than values: so one query meets them at the speed of memory, on a CPU as
    well.

    With scales, keys and values are int8: each token's of a head are multiples of one number. A
    product with them needs no more than to be scaled, so that only a quarter of float32's bytes is
    ever read.
    """

    keys: Float[Array, '*layers b g k e c'] | Int8[Array, '*layers b g k e c']
    values: Float[Array, '*layers b g k c e'] | Int8[Array, '*layers b g k c e']
    valid: Bool[Array, 'b g c'] | None  # None where it is kept apart
    key_scales: Float[Array, '*layers b g k c'] | None = None
    value_scales: Float[Array, '*layers b g k c'] | None = None

    @classmethod
    def of(
        cls,
        keys: Float[Array, '*layers b g c k e'],
        values: Float[Array, '*layers b g c k e'],
        valid: Bool[Array, 'b g c'] | None,
    ) -> KVCache:
        """From keys and values in the order of tokens, as a forward pass leaves them."""
        return cls(jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2), valid)

    def quantized(self) -> KVCache:
        """The same in int8, each number at most a 254th of its token's largest one off."""
        keys, key_scales = _int8(self.keys, -2)
        values, value_scales = _int8(self.values, -1)
        return KVCache(keys, values, self.valid, key_scales, value_scales)

    def plain(self, dtype: DTypeLike) -> KVCache:
        """The same in this dtype and without scales."""
        keys, values = self.keys.astype(dtype), self.values.astype(dtype)
        if self.key_scales is not None:
            keys *= self.key_scales[..., None, :].astype(dtype)
            values *= self.value_scales[..., None].astype(dtype)
        return KVCache(keys, values, self.valid)

    @property
    def in_order(self) -> tuple[Array, Array, Array]:
        """Keys, values and validity with tokens before heads, as `of` takes them; of a plain
        cache.
        """
        return jnp.moveaxis(self.keys, -1, -3), jnp.swapaxes(self.values, -3, -2), self.valid


def _int8(x, axis: int):
    scales = jnp.maximum(
        jnp.abs(x).max(axis).astype(jnp.float32) / LARGEST, jnp.finfo(jnp.float32).tiny
    )
    return jnp.round(x / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales


def joined(keys, values, valid, caches):
    """Caches and own tokens as one run per member: keys and values [b, g, c + s, k, e], valid [b,
    g, c + s].
    """
    g = keys.shape[1]

    def spread(x):
        return jnp.broadcast_to(x, (x.shape[0], g, *x.shape[2:]))

    parts = [*(tuple(map(spread, cache.in_order)) for cache in caches), (keys, values, valid)]
    return tuple(jnp.concatenate(part, axis=2) for part in zip(*parts))
