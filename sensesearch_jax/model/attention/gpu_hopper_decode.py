"""Flash decoding on NVIDIA's Hopper: the kernel of gpu_decode.py for Mosaic GPU, for a jax without Triton.

A split of a cache has a block of threads of its own. Keys and values come by the tensor memory
accelerator, a few blocks ahead of the warpgroup that multiplies them on tensor cores; kv_splits.py
merges the splits. Products have at least 64 rows, which the queries of a group's members to one key
head nearly fill (8 × 7 of the 7B policy). Lowered and interpreted only: it has not run on a card yet.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float

from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache
from sensesearch_jax.model.attention.kv_splits import attend_in_parts, ends

ROWS = 64  # queries of one product: what a warpgroup multiplies at once
BLOCK = 64  # keys of one step: 128 bytes of 16-bit numbers, the widest swizzle
STAGES = 4  # blocks of keys and values on their way: 128 KB of shared memory at heads of 128
PROGRAMS = 128  # about one on each multiprocessor of an H100 or H200
TILES = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # layout that products take


def on_hopper() -> bool:
    """Whether this process computes on Hopper, whose asynchronous products the kernel uses."""
    return getattr(jax.local_devices()[0], 'compute_capability', '') == '9.0'


def takes(queries: Float[Array, 'b g s h e'], caches: tuple[KVCache, ...]) -> bool:
    """Whether the kernel supports these shapes: heads of 64 or 128, caches of 16-bit numbers in whole
    blocks.
    """
    return (
        bool(caches)
        and queries.shape[-1] in (64, 128)
        and all(c.key_scales is None and c.keys.dtype == queries.dtype for c in caches)
        and all(c.keys.shape[-1] % BLOCK == 0 for c in caches)
    )


def attend_few(queries, keys, values, valid, caches, *, interpret: Any = None):
    """Hopper's implementation of `dispatch.attend`, for a few queries per member.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        interpret: Pallas' parameters by which the kernel is interpreted on any platform; for tests.
    """
    over_cache = functools.partial(_splits, interpret=interpret)
    return attend_in_parts(queries, keys, values, valid, caches, over_cache)


def _splits(
    q: Float[Array, 'n q e'], keys, values, valid: Bool[Array, 'm c'], *scales, interpret: Any
):
    """Splits of N key heads with Q queries each; heads of one of the M rows are consecutive."""
    n, count, e = q.shape
    heads, blocks, groups = n // len(valid), keys.shape[-1] // BLOCK, -(-count // ROWS)
    q = jnp.pad(q, ((0, 0), (0, groups * ROWS - count), (0, 0)))
    blocks_each = -(-blocks // max(1, min(blocks, PROGRAMS // (n * groups))))
    splits = -(-blocks // blocks_each)

    def shape(*more):
        return jax.ShapeDtypeStruct((n, splits, groups * ROWS, *more), jnp.float32)

    found = plgpu.kernel(
        functools.partial(_kernel, heads=heads, blocks_each=blocks_each),
        out_type=(shape(e), shape(), shape()),
        grid=(n, splits, groups),
        grid_names=('head', 'split', 'group'),
        scratch_types=(
            plgpu.SMEM((ROWS, e), q.dtype, transforms=TILES),
            plgpu.SMEM((ROWS, BLOCK), q.dtype, transforms=TILES),
            plgpu.SMEM((ROWS, e), jnp.float32),
            plgpu.SMEM((2, ROWS), jnp.float32),
            plgpu.Barrier(),
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )(q, keys, values, jnp.where(valid, 0.0, MASKED), ends(valid))
    return tuple(x[:, :, :count] for x in found)


def _kernel(
    q_ref, key_ref, value_ref, mask_ref, end_ref, out_ref, largest_ref, total_ref,
    q_smem, weight_smem, out_smem, sums_smem, barrier, *, heads: int, blocks_each: int,
):  # fmt: skip
    """Running softmax of a block of queries over one split of one cache, block by block."""
    e = q_smem.shape[1]
    n, split, group = (jax.lax.axis_index(name) for name in ('head', 'split', 'group'))
    row, rows = n // heads, pl.ds(group * ROWS, ROWS)
    plgpu.copy_gmem_to_smem(q_ref.at[n, rows], q_smem, barrier)
    first = split * blocks_each
    last = jnp.minimum(first + blocks_each, pl.cdiv(end_ref[row], BLOCK))
    plgpu.barrier_wait(barrier)

    def product(shape, a, b):
        def accumulate(sums):
            plgpu.wgmma(sums, a, b)
            return sums[...]

        return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))

    def across(x, width):
        return jax.lax.broadcast_in_dim(x, (ROWS, width), (0,))

    def step(_, key_smem, value_smem, mask_smem, state):
        out, largest, total = state
        mask = jax.lax.broadcast_in_dim(mask_smem[...], (ROWS, BLOCK), (1,))
        scores = product((ROWS, BLOCK), q_smem, key_smem) * e**-0.5
        # A masked score is exactly MASKED, as elsewhere.
        scores = jnp.maximum(scores + mask, MASKED)
        now = jnp.maximum(largest, scores.max(axis=1))
        weights, kept = jnp.exp(scores - across(now, BLOCK)), jnp.exp(largest - now)
        weight_smem[...] = weights.astype(weight_smem.dtype)
        plgpu.commit_smem()
        more = product((ROWS, e), weight_smem, value_smem)
        return out * across(kept, e) + more, now, total * kept + weights.sum(axis=1)

    start = (
        jnp.zeros((ROWS, e), jnp.float32),
        jnp.full((ROWS,), MASKED, jnp.float32),
        jnp.zeros((ROWS,), jnp.float32),
    )
    out, largest, total = plgpu.emit_pipeline(
        step,
        grid=(jnp.maximum(last - first, 0),),
        in_specs=[
            plgpu.BlockSpec((e, BLOCK), lambda i: (0, first + i), transforms=TILES),
            plgpu.BlockSpec((BLOCK, e), lambda i: (first + i, 0), transforms=TILES),
            plgpu.BlockSpec((BLOCK,), lambda i: (first + i,)),
        ],
        max_concurrent_steps=STAGES,
        init_carry=start,
    )(key_ref.at[n], value_ref.at[n], mask_ref.at[row])
    out_smem[...], sums_smem[0], sums_smem[1] = out, largest, total
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_smem, out_ref.at[n, split, rows])
    plgpu.copy_smem_to_gmem(sums_smem.at[0], largest_ref.at[n, split, rows])
    plgpu.copy_smem_to_gmem(sums_smem.at[1], total_ref.at[n, split, rows])
    plgpu.wait_smem_to_gmem(0)
