"""Attention on TPU by splash, the Pallas kernel that comes with jax.

Caches and new tokens are one sequence of keys, caches first, so that the mask is a causal one with
the caches' length as its offset.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sensesearch_jax.model.attention.kv_cache import ATTENDED, concatenated

LANES = 128  # of a TPU's vector unit; lengths and head width are padded to multiples
BLOCK = 512  # largest block of queries and of keys


def attend_splash(queries, keys, values, valid, caches, *, interpret: bool = False):
    """Splash implementation of `dispatch.attend`; scores are held for one block at a time.

    Args:
        queries: [B, G, S, H, E] after rotation.
        keys: [B, G, S, K, E] after rotation.
        values: [B, G, S, K, E].
        valid: [B, G, S], False on padding.
        caches: keys and values of earlier tokens.
        interpret: whether to interpret the kernel, on any platform; for tests.
    """
    keys, values, seen = concatenated(keys, values, valid, caches)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    out = _splash(
        *map(flat, (queries, keys, values, seen)), keys.shape[2] - queries.shape[2], interpret
    )
    return out.reshape(queries.shape)


def attend_all_splash(queries, keys, values, valid, *, interpret: bool = False):
    """Splash implementation of `vision_tower.attend_all`.

    Args:
        queries: [N, I, H, E] after rotation.
        keys: [N, I, H, E] after rotation.
        values: [N, I, H, E].
        valid: [N, I], False on padding.
        interpret: as for `attend_splash`.
    """
    return _splash(queries, keys, values, valid, None, interpret)


def _splash(queries, keys, values, seen, offset: int | None, interpret: bool):
    """Splash over sequences [N, S, H, E], causal with that offset, or full where it is None."""
    # Here and not above: Pallas takes long to import, and most programs that import this module
    # never need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, s, h, e = queries.shape

    def pad(x, axis):
        return _padded(x, axis, LANES)

    # Keys behind the queries' end are never visible, so padding them at the end leaves the mask as
    # it is.
    queries, keys, values = (pad(pad(x, 1), 3) for x in (queries * e**-0.5, keys, values))
    seen = pad(seen, 1)
    lengths = queries.shape[1], keys.shape[1]
    mask = masks.FullMask(lengths) if offset is None else masks.CausalMask(lengths, offset=offset)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * h),
        block_sizes=splash.BlockSizes(**_blocks(*lengths)),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name=ATTENDED,
    )

    def sequence(queries, keys, values, seen):
        segments = splash.SegmentIds(jnp.ones(len(queries), jnp.int32), seen.astype(jnp.int32))

        def first(x):
            return jnp.moveaxis(x, 1, 0)

        return first(kernel(first(queries), first(keys), first(values), segment_ids=segments))

    return jax.vmap(sequence)(queries, keys, values, seen)[:, :s, :, :e].astype(values.dtype)


def _padded(x, axis: int, step: int):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, -x.shape[axis] % step
    return jnp.pad(x, widths)


def _blocks(queries: int, keys: int) -> dict[str, int]:
    """Largest blocks up to BLOCK that divide both lengths, for the forward and backward kernels."""

    def largest(length):
        return max(size for size in range(LANES, BLOCK + 1, LANES) if length % size == 0)

    q, kv = largest(queries), largest(keys)
    return dict(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
