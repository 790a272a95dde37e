"""Flash decoding on a GPU: a Pallas kernel for a few queries to long KV caches.

A cache is split along its tokens, and each split has a program and a running softmax of its own
(Dao et al., arXiv 2205.14135; the splits: "flash decoding", Dao et al., 2023). Their results are
merged in kv_splits.py.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache
from sensesearch_jax.model.attention.kv_splits import attend_in_parts, ends

BLOCK = 128  # keys of one step of a program
ROWS = 16, 32, 64  # block sizes of queries; 16 is the least that tensor cores take
# one on each multiprocessor: with more, merging the splits costs more than it saves (on an H200)
PROGRAMS = 128
WARPS, STAGES = 4, 3  # of a program: groups of 32 threads, and depth of its software pipeline


def takes(queries: Float[Array, 'b g s h e'], caches: tuple[KVCache, ...]) -> bool:
    """Whether the kernel supports these shapes: it needs blocks of at least 16 tokens, and a head
    width that is a power of two.
    """
    width = queries.shape[-1]
    return (
        bool(caches)
        and width >= 16
        and width & (width - 1) == 0
        and all(_block(cache.keys.shape[-1]) >= 16 for cache in caches)
    )


def attend_few(queries, keys, values, valid, caches, *, interpret: bool = False):
    """Flash-decoding implementation of `dispatch.attend`, for a few queries per member.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        interpret: whether to interpret the kernel, on any platform; for tests.
    """
    over_cache = functools.partial(_splits, interpret=interpret)
    return attend_in_parts(queries, keys, values, valid, caches, over_cache)


def _splits(
    q: Float[Array, 'n q e'],
    keys,
    values,
    valid: Bool[Array, 'm c'],
    key_scales,
    value_scales,
    *,
    interpret: bool,
):
    """Splits of N key heads with Q queries each; heads of one of the M rows are consecutive."""
    n, count, e = q.shape
    heads, tokens, block = n // len(valid), keys.shape[-1], _block(keys.shape[-1])
    rows = next((size for size in ROWS if size >= count), ROWS[-1])
    groups = -(-count // rows)
    q = jnp.pad(q, ((0, 0), (0, groups * rows - count), (0, 0)))
    blocks = tokens // block
    blocks_each = -(-blocks // max(1, min(blocks, PROGRAMS // (n * groups))))
    splits = -(-blocks // blocks_each)

    def of_head(*shape):
        return pl.BlockSpec((None, *shape), lambda i, j, r: (i, *[0] * len(shape)))

    def of_row(*shape):
        return pl.BlockSpec((None, *shape), lambda i, j, r: (i // heads, *[0] * len(shape)))

    scales = [] if key_scales is None else [key_scales, value_scales]

    def out(*shape):
        return pl.BlockSpec(
            (None, None, rows, *shape), lambda i, j, r: (i, j, r, *[0] * len(shape))
        )

    def shape(*more):
        return jax.ShapeDtypeStruct((n, splits, groups * rows, *more), jnp.float32)

    found = pl.pallas_call(
        functools.partial(_kernel, block=block, blocks_each=blocks_each, scale=e**-0.5),
        grid=(n, splits, groups),
        in_specs=[
            pl.BlockSpec((None, rows, e), lambda i, j, r: (i, r, 0)),
            of_head(e, tokens),
            of_head(tokens, e),
            of_row(tokens),
            of_row(1),
            *[of_head(tokens)] * len(scales),
        ],
        out_specs=[out(e), out(), out()],
        out_shape=[shape(e), shape(), shape()],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name='attend_few',
    )(q, keys, values, valid, ends(valid)[:, None], *scales)
    return tuple(x[:, :, :count] for x in found)


def _kernel(
    q_ref, key_ref, value_ref, valid_ref, end_ref, *refs, block: int, blocks_each: int, scale: float
):
    """Running softmax of a block of queries over one split of one cache, block by block."""
    *scale_refs, out_ref, largest_ref, total_ref = refs
    q = q_ref[...]
    first = pl.program_id(1) * blocks_each
    last = jnp.minimum(first + blocks_each, pl.cdiv(end_ref[0], block))

    def step(i, state):
        out, largest, total = state
        at = pl.ds(i * block, block)
        scores = (
            jnp.dot(q, key_ref[:, at].astype(q.dtype), preferred_element_type=jnp.float32) * scale
        )
        if scale_refs:
            scores *= scale_refs[0][at][None]
        scores = jnp.where(valid_ref[at][None], scores, MASKED)
        now = jnp.maximum(largest, scores.max(1))
        weights, kept = jnp.exp(scores - now[:, None]), jnp.exp(largest - now)
        total = total * kept + weights.sum(1)
        if scale_refs:
            weights *= scale_refs[1][at][None]
        more = jnp.dot(
            weights.astype(q.dtype),
            value_ref[at, :].astype(q.dtype),
            preferred_element_type=jnp.float32,
        )
        return out * kept[:, None] + more, now, total

    rows, e = q.shape
    start = (
        jnp.zeros((rows, e), jnp.float32),
        jnp.full((rows,), MASKED, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
    )
    out_ref[...], largest_ref[...], total_ref[...] = jax.lax.fori_loop(first, last, step, start)


def _block(tokens: int) -> int:
    """Block size: the largest power of two up to BLOCK that divides the number of tokens."""
    return math.gcd(tokens, BLOCK)
