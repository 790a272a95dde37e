"""Attention in tiles of queries: scores are held for one tile, so memory is linear in the tokens.

On a CPU the key heads of a member are computed one at a time, so that scores stay in the processor's
caches: reading and writing those of all heads took four times as long. On a GPU, in a dtype that no
kernel supports, all heads of a member are computed together. The backward pass keeps the outputs and
the logarithm of each softmax's sum, and computes the weights again (Dao et al., arXiv 2205.14135).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from sensesearch_jax.model.attention.kv_cache import ATTENDED, MASKED, KVCache

TILE = 256  # queries


def attend_in_tiles(queries, keys, values, valid, caches, *, over_heads: Callable):
    """Tiled implementation of `dispatch.attend`.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        over_heads: applies a function to each key head's operands, like `jax.lax.map`.
    """
    b, g, s, h, e = queries.shape
    k = keys.shape[3]

    def by_head(x):
        return jnp.moveaxis(x, 3, 1)  # [b, g, s, k, e] -> [b, k, g, s, e]

    # [b, k, g, r, s, e]
    queries = (queries * e**-0.5).reshape(b, g, s, k, h // k, e).transpose(0, 3, 1, 4, 2, 5)
    shared = tuple(c.keys.shape[1] == 1 for c in caches)

    def row(x):
        queries, keys, values, valid, caches = x  # without b; valid: [g, s]

        def head(x):
            queries, keys, values, caches = x

            def member(x):
                queries, keys, values, valid, unshared, unshared_valid = x
                unshared, unshared_valid = iter(unshared), iter(unshared_valid)
                now = [
                    tuple(part[0] for part in c) if same else next(unshared)
                    for c, same in zip(caches, shared)
                ]
                seen = [
                    c[0] if same else next(unshared_valid) for c, same in zip(cache_valid, shared)
                ]
                return tiled(
                    queries,
                    jnp.concatenate([*(keys.T for keys, _ in now), keys]),
                    jnp.concatenate([*(values for _, values in now), values]),
                    jnp.concatenate([*seen, valid]),
                )

            def of_member(parts):
                return tuple(c for c, same in zip(parts, shared) if not same)

            return jax.lax.map(
                member, (queries, keys, values, valid, of_member(caches), of_member(cache_valid))
            )

        # Which tokens are real is the same for all heads, and must be seen to be: else all tiles of
        # padding are computed.
        cache_valid = tuple(c.valid for c in caches)
        return over_heads(head, (queries, keys, values, tuple((c.keys, c.values) for c in caches)))

    caches = tuple(KVCache(c.keys.swapaxes(1, 2), c.values.swapaxes(1, 2), c.valid) for c in caches)
    # [b, k, g, r, s, e]
    out = jax.lax.map(row, (queries, by_head(keys), by_head(values), valid, caches))
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(b, g, s, h, e).astype(queries.dtype)


attend_by_head = functools.partial(attend_in_tiles, over_heads=jax.lax.map)
attend_by_member = functools.partial(
    attend_in_tiles, over_heads=lambda head, operands: jax.vmap(head)(operands)
)


@jax.custom_vjp
def tiled(
    queries: Float[Array, 'r s e'],
    keys: Float[Array, 't e'],
    values: Float[Array, 't e'],
    valid: Bool[Array, ' t'],
) -> Float[Array, 'r s e']:
    """Attention of the R query heads of one key head: causal over the last S keys, full before.

    Args:
        queries: of the last S tokens, after rotation and scaling.
        keys: of all T tokens.
        values: of all T tokens.
        valid: False on padding.
    """
    return _forward(queries, keys, values, valid)[0]


def _forward(queries, keys, values, valid):
    # Masks depend on `valid` alone and have no gradient, so JAX would hoist them out of the loops
    # around here, and keep those of all tiles, heads and members in memory.
    queries, valid = jax.lax.optimization_barrier((queries, valid))
    outs, sums = [], []
    for first, last, end in _tiles(queries, keys):

        def tile(queries, keys, values, valid):
            scores = _scores(queries, keys, valid)
            largest = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - largest)
            total = weights.sum(-1, keepdims=True)
            out = jnp.einsum(
                'rst,te->rse',
                weights.astype(values.dtype),
                values,
                preferred_element_type=jnp.float32,
            )
            return (out / total).astype(values.dtype), (largest + jnp.log(total))[..., 0]

        def nothing(queries, *_):
            return (jnp.zeros_like(queries), jnp.zeros(queries.shape[:2], jnp.float32))

        out, total = _unless_padding(
            valid[end - (last - first) : end],
            tile,
            nothing,
            queries[:, first:last],
            keys[:end],
            values[:end],
            valid[:end],
        )
        outs.append(out)
        sums.append(total)
    out, sums = (checkpoint_name(jnp.concatenate(x, 1), ATTENDED) for x in (outs, sums))
    return out, (queries, keys, values, valid, out, sums)


def _backward(kept, cotangent):
    """Gradients from the cotangent of the output, [r, s, e]."""
    queries, keys, values, valid, out, sums = kept
    row_sums = (cotangent.astype(jnp.float32) * out).sum(-1)
    # Gradients by keys and values are [e, t]: a wide product is faster than a tall one.
    by_keys, by_values = (jnp.zeros(x.T.shape, jnp.float32) for x in (keys, values))
    by_queries = []

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    for first, last, end in _tiles(queries, keys):

        def tile(by_keys, by_values, queries, cotangent, row_sums, sums, end=end):
            weights = jnp.exp(_scores(queries, keys[:end], valid[:end]) - sums[..., None])
            by_weights = jnp.einsum(
                'rse,te->rst', cotangent, values[:end], preferred_element_type=jnp.float32
            )
            by_scores = (weights * (by_weights - row_sums[..., None])).astype(keys.dtype)
            weights = weights.astype(values.dtype)
            return (
                by_keys.at[:, :end].add(flat(queries).T @ flat(by_scores)),
                by_values.at[:, :end].add(flat(cotangent).T @ flat(weights)),
                jnp.einsum('rst,te->rse', by_scores, keys[:end]).astype(queries.dtype),
            )

        def nothing(by_keys, by_values, queries, *_):
            return (by_keys, by_values, jnp.zeros_like(queries))

        part = slice(first, last)
        by_keys, by_values, by_tile = _unless_padding(
            valid[end - (last - first) : end],
            tile,
            nothing,
            by_keys,
            by_values,
            queries[:, part],
            cotangent[:, part],
            row_sums[:, part],
            sums[:, part],
        )
        by_queries.append(by_tile)
    return (
        jnp.concatenate(by_queries, 1),
        by_keys.T.astype(keys.dtype),
        by_values.T.astype(values.dtype),
        None,
    )


tiled.defvjp(_forward, _backward)


def _tiles(queries, keys) -> Iterator[tuple[int, int, int]]:
    """First query and end of each tile, and the number of keys up to its end."""
    s, before = queries.shape[1], len(keys) - queries.shape[1]
    for first in range(0, s, TILE):
        last = min(first + TILE, s)
        yield first, last, before + last


def _scores(queries, keys, valid):
    """Masked scores of queries at the last of these keys."""
    s, t = queries.shape[1], len(keys)
    seen = (jnp.arange(t - s, t)[:, None] >= jnp.arange(t)) & valid
    return jnp.where(
        seen, jnp.einsum('rse,te->rst', queries, keys, preferred_element_type=jnp.float32), MASKED
    )


def _unless_padding(valid, tile, nothing, *operands):
    """Result of `tile`, or of `nothing` for a tile that is all padding, as in shorter rows."""
    return jax.lax.cond(valid.any(), tile, nothing, *operands)
