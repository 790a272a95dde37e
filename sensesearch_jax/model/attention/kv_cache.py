"""KV cache: keys and values of earlier tokens, in floating point or quantized to int8."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int8

LARGEST = 127  # magnitude of an int8
# checkpoint name of the residuals of attention beside its operands, for remat policies
ATTENDED = 'attended'
# score of a masked key; finite, so that a query without any key has a finite (and unused) result
MASKED = -1e30


class KVCache(NamedTuple):
    """KV cache of C earlier tokens, of one layer, or of all with a leading layer axis.

    The group axis g is G, or 1 for a cache that the members share. Heads come before tokens, and keys
    are transposed, so that a product with one query runs at the speed of memory, on a CPU too.

    With scales, keys and values are int8, with one scale for each head and token. Products with them
    are scaled afterwards, so that only a quarter of float32's bytes is read.
    """

    keys: Float[Array, '*layers b g k e c'] | Int8[Array, '*layers b g k e c']
    values: Float[Array, '*layers b g k c e'] | Int8[Array, '*layers b g k c e']
    valid: Bool[Array, 'b g c'] | None  # None where the caller keeps it
    key_scales: Float[Array, '*layers b g k c'] | None = None
    value_scales: Float[Array, '*layers b g k c'] | None = None

    @classmethod
    def of(
        cls,
        keys: Float[Array, '*layers b g c k e'],
        values: Float[Array, '*layers b g c k e'],
        valid: Bool[Array, 'b g c'] | None,
    ) -> KVCache:
        """KV cache of keys and values as a forward pass returns them.

        Args:
            keys: tokens before heads.
            values: tokens before heads.
            valid: False on padding; None where the caller keeps it.
        """
        return cls(jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2), valid)

    def quantized(self) -> KVCache:
        """KV cache in int8; the error is at most a 254th of the largest magnitude of head and token."""
        keys, key_scales = _int8(self.keys, -2)
        values, value_scales = _int8(self.values, -1)
        return KVCache(keys, values, self.valid, key_scales, value_scales)

    def dequantized(self, dtype: DTypeLike) -> KVCache:
        """KV cache in this dtype, without scales."""
        keys, values = self.keys.astype(dtype), self.values.astype(dtype)
        if self.key_scales is not None:
            keys *= self.key_scales[..., None, :].astype(dtype)
            values *= self.value_scales[..., None].astype(dtype)
        return KVCache(keys, values, self.valid)

    def of_layer(self, layer: int) -> KVCache:
        """KV cache of one layer, given that of all layers."""
        parts = ((name, x) for name, x in self._asdict().items() if name != 'valid')
        return self._replace(**{name: None if x is None else x[layer] for name, x in parts})

    @property
    def in_order(self) -> tuple[Array, Array, Array]:
        """Keys, values and validity with tokens before heads, as `of` takes them; without scales."""
        return jnp.moveaxis(self.keys, -1, -3), jnp.swapaxes(self.values, -3, -2), self.valid


def _int8(x, axis: int):
    scales = jnp.maximum(
        jnp.abs(x).max(axis).astype(jnp.float32) / LARGEST, jnp.finfo(jnp.float32).tiny
    )
    return jnp.round(x / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales


def concatenated(keys, values, valid, caches):
    """Keys and values of caches and new tokens as one sequence per member, caches first.

    Args:
        keys: [B, G, S, K, E] of the new tokens.
        values: [B, G, S, K, E] of the new tokens.
        valid: [B, G, S], False on padding.
        caches: without scales; C tokens in all.

    Returns:
        keys and values [B, G, C + S, K, E], and valid [B, G, C + S].
    """
    g = keys.shape[1]

    def per_member(x):
        return jnp.broadcast_to(x, (x.shape[0], g, *x.shape[2:]))

    parts = [*(tuple(map(per_member, cache.in_order)) for cache in caches), (keys, values, valid)]
    return tuple(jnp.concatenate(part, axis=2) for part in zip(*parts))
