"""Attention by XLA with all scores as one array: for a few queries, on any platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from sensesearch_jax.model.attention.kv_cache import ATTENDED, MASKED


def attend_at_once(queries, keys, values, valid, caches):
    """XLA implementation of `dispatch.attend`, with all scores in memory.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
    """
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    # All products are of [q, e] with [e, keys]: q counts the S tokens of a key head's R query
    # heads.
    q = jnp.moveaxis((queries * e**-0.5).reshape(b, g, s, k, h // k, e), 2, 4).reshape(
        b, g, k, -1, e
    )

    def of_group(x):
        # the members' queries side by side
        return jnp.swapaxes(x, 1, 2).reshape(b, k, -1, x.shape[-1])

    def of_member(x):
        return jnp.swapaxes(x.reshape(b, k, g, -1, x.shape[-1]), 1, 2)

    shared = [cache.keys.shape[1] == 1 for cache in caches]
    scores = []
    for cache, same in zip(caches, shared):
        earlier = cache.keys.astype(q.dtype)
        if same:
            score = of_member(
                jnp.einsum(
                    'bkqe,bkec->bkqc',
                    of_group(q),
                    earlier[:, 0],
                    preferred_element_type=jnp.float32,
                )
            )
        else:
            score = jnp.einsum('bgkqe,bgkec->bgkqc', q, earlier, preferred_element_type=jnp.float32)
        if cache.key_scales is not None:
            score *= cache.key_scales[:, :, :, None]
        scores.append(jnp.where(cache.valid[:, :, None, None, :], score, MASKED))
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (h // k, 1))
    score = jnp.einsum('bgkqe,bgtke->bgkqt', q, keys, preferred_element_type=jnp.float32)
    scores.append(jnp.where(causal & valid[:, :, None, None, :], score, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(values.dtype)
    *parts, last = jnp.split(weights, np.cumsum([c.keys.shape[-1] for c in caches]), axis=-1)
    out = jnp.einsum('bgkqt,bgtke->bgkqe', last, values)
    for part, cache, same in zip(parts, caches, shared):
        earlier = cache.values.astype(values.dtype)
        if cache.value_scales is not None:
            part *= cache.value_scales[:, :, :, None].astype(part.dtype)
        if same:
            out += of_member(jnp.einsum('bkqc,bkce->bkqe', of_group(part), earlier[:, 0]))
        else:
            out += jnp.einsum('bgkqc,bgkce->bgkqe', part, earlier)
    out = jnp.moveaxis(out.reshape(b, g, k, h // k, s, e), 4, 2)
    return checkpoint_name(out.reshape(b, g, s, h, e).astype(queries.dtype), ATTENDED)
