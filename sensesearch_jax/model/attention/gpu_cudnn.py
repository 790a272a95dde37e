"""Attention on NVIDIA by cuDNN's fused kernels, which come with jax.

Caches and own tokens are one run of keys, caches first, so that a causal mask moved by the
caches' length says what is seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sensesearch_jax.model.attention.kv_cache import joined


def cudnn_takes(dtype: DTypeLike) -> bool:
    """Whether cuDNN's attention computes with that type: with halves only."""
    return jnp.dtype(dtype).itemsize == 2


def attend_cudnn(queries, keys, values, valid, caches, *, implementation: str = 'cudnn'):
    """`dispatch.attend` by cuDNN's fused attention; never holds scores, but with caches a bias
    per score.

    Args:
        implementation: 'xla' computes the same on any platform; for tests.
    """
    b, g, s, h, e = queries.shape

    def flat(x):
        return x.reshape(b * g, *x.shape[2:])

    if caches:
        keys, values, seen = joined(keys, values, valid, caches)
        c = keys.shape[2]
        mask = (jnp.arange(s)[:, None] + c - s >= jnp.arange(c)) & seen[:, :, None]
        how = {'mask': flat(mask)[:, None]}
    # what is behind the real tokens is behind every query that counts: half of the work is never
    # begun
    else:
        how = {'is_causal': True}
    out = jax.nn.dot_product_attention(
        flat(queries), flat(keys), flat(values), implementation=implementation, **how
    )
    return out.reshape(b, g, s, h, e)


def attend_all_cudnn(queries, keys, values, valid, *, implementation: str = 'cudnn'):
    """`vision.attend_all` by cuDNN, which counts keys: the valid ones are moved to the front, their
    order says nothing.

    Args:
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
