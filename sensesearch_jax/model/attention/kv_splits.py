"""Attention over pieces of the keys, merged by log-sum-exp: what the decode kernels have in common.

A softmax over several caches is that of each of them, weighted by the sum of its exponentials (Dao
et al., arXiv 2205.14135). Queries that share a cache are rows of one product with it: a group's
prompt is read once for all of its members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache


class Part(NamedTuple):
    """Unnormalized attention over some keys, in P splits.

    Attributes:
        out: sum of the values, weighted by exp(score − largest).
        largest: the largest score of each split.
        total: sum of the weights.
    """

    out: Float[Array, 'b g k p q e']
    largest: Float[Array, 'b g k p q']
    total: Float[Array, 'b g k p q']


def attend_in_parts(queries, keys, values, valid, caches, over_cache: Callable):
    """`dispatch.attend` for a few queries per member, with each cache as a part of its own.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        over_cache: attention over one cache by heads: of queries [N, Q, E], keys [N, E, C], values
            [N, C, E], valid [M, C] and, where there are scales, two of [N, C], else None. The N / M
            key heads of a row are consecutive. It returns the fields of a part as [N, P, Q, …].
    """
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    q = jnp.moveaxis(queries.reshape(b, g, s, k, h // k, e), 2, 4).reshape(b, g, k, -1, e)
    parts = [
        _new_tokens(q, keys, values, valid, s),
        *(_by_head(q, cache, over_cache) for cache in caches),
    ]
    out, largest, total = (jnp.concatenate(x, axis=3) for x in zip(*parts))
    weights = jnp.exp(largest - largest.max(3, keepdims=True))
    out = (weights[..., None] * out).sum(3) / (weights * total).sum(3)[..., None]
    out = jnp.moveaxis(out.reshape(b, g, k, h // k, s, e), 4, 2)
    return out.reshape(b, g, s, h, e).astype(queries.dtype)


def ends(valid: Bool[Array, 'm c']) -> Int[Array, ' m']:
    """Number of tokens up to a row's last valid one: behind it no kernel reads."""
    return jnp.where(valid, jnp.arange(1, valid.shape[1] + 1), 0).max(1).astype(jnp.int32)


def _new_tokens(q, keys, values, valid, s: int) -> Part:
    """Causal attention over the new tokens, which are as few as the queries."""
    scores = (
        jnp.einsum('bgkqe,bgtke->bgkqt', q, keys, preferred_element_type=jnp.float32)
        * q.shape[-1] ** -0.5
    )
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (q.shape[3] // s, 1))
    scores = jnp.where(causal & valid[:, :, None, None, :], scores, MASKED)
    largest = scores.max(-1)
    weights = jnp.exp(scores - largest[..., None])
    out = jnp.einsum(
        'bgkqt,bgtke->bgkqe',
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return Part(out[:, :, :, None], largest[:, :, :, None], weights.sum(-1)[:, :, :, None])


def _by_head(q, cache: KVCache, over_cache: Callable) -> Part:
    """Attention over one cache; the queries of members that share it are rows of one product."""
    b, g, k, rows, e = q.shape
    members, tokens = cache.keys.shape[1], cache.keys.shape[-1]
    queries = (
        jnp.moveaxis(q, 1, 2).reshape(b * k, g * rows, e)
        if members == 1
        else q.reshape(b * g * k, rows, e)
    )

    def flat(x):
        return None if x is None else x.reshape(b * members * k, *x.shape[3:])

    found = over_cache(
        queries,
        flat(cache.keys),
        flat(cache.values),
        cache.valid.reshape(b * members, tokens),
        flat(cache.key_scales),
        flat(cache.value_scales),
    )

    def back(x):
        if members == 1:
            x = x.reshape(b, k, x.shape[1], g, rows, *x.shape[3:])
            return jnp.moveaxis(x, 3, 1)
        return x.reshape(b, g, k, *x.shape[1:])

    return Part(*map(back, found))
