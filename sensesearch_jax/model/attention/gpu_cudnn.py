"""Attention on NVIDIA by cuDNN's fused kernels, which come with jax.

Caches and new tokens are one sequence of keys, caches first, so that the mask is a causal one with
the caches' length as its offset.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sensesearch_jax.model.attention.kv_cache import concatenated


def cudnn_takes(dtype: DTypeLike) -> bool:
    """Whether cuDNN's attention supports that dtype: 16-bit floats only."""
    return jnp.dtype(dtype).itemsize == 2


def attend_cudnn(queries, keys, values, valid, caches, *, implementation: str = 'cudnn'):
    """CuDNN implementation of `dispatch.attend`; holds no scores, but with caches a mask of their
    size.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        implementation: 'xla' computes the same on any platform; for tests.
    """
    b, g, s, h, e = queries.shape

    def flat(x):
        return x.reshape(b * g, *x.shape[2:])

    if caches:
        keys, values, seen = concatenated(keys, values, valid, caches)
        c = keys.shape[2]
        mask = (jnp.arange(s)[:, None] + c - s >= jnp.arange(c)) & seen[:, :, None]
        how = {'mask': flat(mask)[:, None]}
    else:  # padding comes last, and so behind every valid query: half of the work is left out
        how = {'is_causal': True}
    out = jax.nn.dot_product_attention(
        flat(queries), flat(keys), flat(values), implementation=implementation, **how
    )
    return out.reshape(b, g, s, h, e)


def attend_all_cudnn(queries, keys, values, valid, *, implementation: str = 'cudnn'):
    """CuDNN implementation of `vision_tower.attend_all`.

    The kernel takes a number of keys, so the valid ones are moved to the front; their order does not
    matter.

    Args:
        queries: [N, I, H, E] after rotation.
        keys: [N, I, H, E] after rotation.
        values: [N, I, H, E].
        valid: [N, I], False on padding.
        implementation: as for `attend_cudnn`.
    """
    order = jnp.argsort(~valid, axis=1, stable=True)[..., None, None]

    def front(x):
        return jnp.take_along_axis(x, order, axis=1)

    return jax.nn.dot_product_attention(
        queries,
        front(keys),
        front(values),
        implementation=implementation,
        key_value_seq_lengths=valid.sum(1, dtype=jnp.int32),
    )
