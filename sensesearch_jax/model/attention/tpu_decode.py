"""Flash decoding on a TPU: a Pallas kernel for one query of each lane to its KV caches.

Of each cache it reads as much as that lane, or that prompt, has written; products of XLA read of all
lanes as much as the longest has. Blocks of tokens run one after the other with a running softmax
(Dao et al., arXiv 2205.14135); the caches' results are merged in kv_splits.py.

The kernels for decoding that come with jax, `paged_attention` and `ragged_paged_attention`, want
caches in pages and give back neither the largest score nor the sum of the weights, so that their
result cannot be merged with that of a shared prompt.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache
from sensesearch_jax.model.attention.kv_splits import attend_in_parts, ends

LANES = 128  # of a TPU's vector unit
# Tokens of one step: half a MiB of keys and values in bfloat16. With fewer the step itself would take
# longer than its bytes, with more a lane's last block would be more padding.
BLOCK = 1024


def takes(queries: Float[Array, 'b g s h e'], caches: tuple[KVCache, ...]) -> bool:
    """Whether the kernel supports these shapes: one query a member, heads as wide as the vector unit
    or a multiple, and a cache that is long enough to gain by it.
    """
    return (
        queries.shape[2] == 1
        and queries.shape[-1] % LANES == 0
        and any(cache.keys.shape[-1] > LANES for cache in caches)
    )


def attend_one(queries, keys, values, valid, caches, *, interpret: bool = False):
    """Flash-decoding implementation of `dispatch.attend`, for one query per member.

    Args:
        queries: [B, G, 1, H, E] after rotation.
        keys: [B, G, 1, K, E] after rotation.
        values: [B, G, 1, K, E].
        valid: [B, G, 1], False on padding.
        caches: keys and values of earlier tokens.
        interpret: whether to interpret the kernel, on any platform; for tests.
    """

    def over_cache(q, keys, *others):
        # The tokens that were sampled since the host last read them are fewer than a block.
        if keys.shape[-1] <= LANES:
            return _at_once(q, keys, *others)
        return _in_blocks(q, keys, *others, interpret=interpret)

    return attend_in_parts(queries, keys, values, valid, caches, over_cache)


def _at_once(q, keys, values, valid, key_scales, value_scales):
    """A short cache, by products of XLA; one split."""
    n, _, e = q.shape
    scores = jnp.einsum('nqe,nec->nqc', q, keys.astype(q.dtype), preferred_element_type=jnp.float32)
    scores *= e**-0.5
    if key_scales is not None:
        scores *= key_scales[:, None]
    scores = jnp.where(jnp.repeat(valid, n // len(valid), 0)[:, None], scores, MASKED)
    largest = scores.max(-1)
    weights = jnp.exp(scores - largest[..., None])
    total = weights.sum(-1)
    if value_scales is not None:
        weights *= value_scales[:, None]
    out = jnp.einsum(
        'nqc,nce->nqe',
        weights.astype(q.dtype),
        values.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return out[:, None], largest[:, None], total[:, None]


def _in_blocks(
    q: Float[Array, 'n q e'],
    keys,
    values,
    valid: Bool[Array, 'm c'],
    key_scales,
    value_scales,
    *,
    interpret: bool,
):
    """A long cache by the kernel; N key heads with Q queries each, those of one of the M rows
    consecutive; one split.
    """
    n, rows, e = q.shape
    heads, tokens = n // len(valid), keys.shape[-1]
    block = min(BLOCK, tokens)
    scales = [] if key_scales is None else [key_scales[:, None], value_scales[:, None]]

    def fetched(i, j, end):
        return fetched_block(i, j, end, block=block, heads=heads, count=n)

    def of_head(*shape):
        return pl.BlockSpec((None, *shape), lambda i, j, end: (i, 0, 0))

    def along_tokens(*shape, of=lambda i: i, axis=2):
        def at(i, j, end):
            i, j = fetched(i, j, end)
            return (of(i), 0, j) if axis == 2 else (of(i), j, 0)

        return pl.BlockSpec((None, *shape), at)

    out, largest, total = pl.pallas_call(
        functools.partial(_kernel, tokens=tokens, block=block, heads=heads, scale=e**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(n, pl.cdiv(tokens, block)),
            in_specs=[
                of_head(rows, e),
                along_tokens(e, block),
                along_tokens(block, e, axis=1),
                along_tokens(1, block, of=lambda i: i // heads),
                *[along_tokens(1, block)] * len(scales),
            ],
            out_specs=[of_head(rows, e), of_head(rows, 1), of_head(rows, 1)],
        ),
        out_shape=[jax.ShapeDtypeStruct((n, rows, width), jnp.float32) for width in (e, 1, 1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
        interpret=interpret,
        name='attend_one',
    )(ends(valid), q, keys, values, jnp.where(valid, 0.0, MASKED)[:, None], *scales)
    return out[:, None], largest[:, None, :, 0], total[:, None, :, 0]


def fetched_block(i, j, end, *, block: int, heads: int, count: int):
    """Head and block that are in fast memory at step (i, j) of the grid.

    Behind a row's end that is the next head's first block: the pipeline fetches nothing where the
    place stays the same, and so begins with the next head as soon as this one has ended.

    Args:
        i: head.
        j: block of tokens.
        end: tokens of each row that are read.
        block: tokens of a block.
        heads: of a row.
        count: of all heads.
    """
    read = (j == 0) | (j * block < end[i // heads])
    return jnp.where(read, i, jnp.minimum(i + 1, count - 1)), jnp.where(read, j, 0)


def _kernel(
    end_ref, q_ref, key_ref, value_ref, bias_ref, *refs,
    tokens: int, block: int, heads: int, scale: float,
):  # fmt: skip
    """Running softmax of a head's queries over one block of its cache; the results, which stay in
    fast memory until the next head, are what runs.
    """
    *scale_refs, out_ref, largest_ref, total_ref = refs
    j, end = pl.program_id(1), end_ref[pl.program_id(0) // heads]

    @pl.when(j == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        largest_ref[...] = jnp.full_like(largest_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)

    def run(count):
        """The block's first tokens, so many."""
        q, before = q_ref[...], largest_ref[...]
        keys, values = key_ref[:, :count].astype(q.dtype), value_ref[:count].astype(q.dtype)
        scores = jnp.dot(q, keys, preferred_element_type=jnp.float32) * scale
        if scale_refs:
            scores *= scale_refs[0][:, :count]
        scores += bias_ref[:, :count]
        largest = jnp.maximum(before, scores.max(1, keepdims=True))
        weights, kept = jnp.exp(scores - largest), jnp.exp(before - largest)
        largest_ref[...] = largest
        total_ref[...] = total_ref[...] * kept + weights.sum(1, keepdims=True)
        if scale_refs:
            weights *= scale_refs[1][:, :count]
        more = jnp.dot(weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        out_ref[...] = out_ref[...] * kept + more

    # Behind the cache's own end the last block holds anything, NaN too.
    whole, torn = divmod(tokens, block)
    pl.when((j < whole) & (j * block < end))(lambda: run(block))
    if torn:
        pl.when((j == whole) & (j * block < end))(lambda: run(torn))
