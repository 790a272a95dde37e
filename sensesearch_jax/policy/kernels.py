"""Attention by kernels that come with jax: Pallas (splash) on TPU, cuDNN on NVIDIA.

Both see contexts and own tokens as one run of keys, contexts first, so that "own tokens causally, contexts fully" is
a causal mask moved by the contexts' length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU's vector unit: lengths and head width come in multiples of it
BLOCK = 512  # queries and keys that the kernel takes at once, where there are as many


def attend_splash(queries, keys, values, valid, contexts, *, interpret: bool = False):
    """`attention.attend` by the splash kernel; never holds scores beyond a block.

    Args:
        interpret: run the kernel's program step by step, on any platform; for tests.
    """
    # Here and not above: Pallas takes long to import, and most programs that import this module never need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    _, _, s, h, e = queries.shape
    keys, values, seen = joined(keys, values, valid, contexts)
    length = keys.shape[2] - s
    pad = lambda x, axis: _padded(x, axis, LANES)
    # Keys behind the queries' end are never visible, so padding them at the end leaves the mask as it is.
    queries = pad(pad(queries * e**-0.5, 2), 4)
    keys, values, seen = pad(pad(keys, 2), 4), pad(pad(values, 2), 4), pad(seen, 2)
    mask = splash_attention_mask.CausalMask((queries.shape[2], keys.shape[2]), offset=length)
    kernel = splash.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * h), block_sizes=splash.BlockSizes(**_blocks(queries.shape[2], keys.shape[2])),
        head_shards=1, q_seq_shards=1, interpret=interpret)

    def member(queries, keys, values, seen):
        segments = splash.SegmentIds(jnp.ones(len(queries), jnp.int32), seen.astype(jnp.int32))
        first = lambda x: jnp.moveaxis(x, 1, 0)
        return first(kernel(first(queries), first(keys), first(values), segment_ids=segments))

    out = jax.vmap(jax.vmap(member))(queries, keys, values, seen)
    return out[:, :, :s, :, :e].astype(values.dtype)


def attend_cudnn(queries, keys, values, valid, contexts, *, implementation: str = 'cudnn'):
    """`attention.attend` by cuDNN's fused attention; never holds scores, but a mask of a byte and a bias per score.

    Args:
        implementation: 'xla' computes the same on any platform; for tests.
    """
    b, g, s, h, e = queries.shape
    keys, values, seen = joined(keys, values, valid, contexts)
    c = keys.shape[2]
    mask = (jnp.arange(s)[:, None] + c - s >= jnp.arange(c)) & seen[:, :, None]
    flat = lambda x: x.reshape(b * g, *x.shape[2:])
    out = jax.nn.dot_product_attention(flat(queries), flat(keys), flat(values), mask=flat(mask)[:, None],
                                       implementation=implementation)
    return out.reshape(b, g, s, h, e)


def joined(keys, values, valid, contexts):
    """Contexts and own tokens as one run per member: keys and values [b, g, c + s, k, e], valid [b, g, c + s]."""
    g = keys.shape[1]
    spread = lambda x: jnp.broadcast_to(x, (x.shape[0], g, *x.shape[2:]))
    parts = [*(tuple(map(spread, context.in_order)) for context in contexts), (keys, values, valid)]
    return tuple(jnp.concatenate(part, axis=2) for part in zip(*parts))


def _padded(x, axis: int, step: int):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, -x.shape[axis] % step
    return jnp.pad(x, widths)


def _blocks(queries: int, keys: int) -> dict[str, int]:
    """The largest blocks up to BLOCK that divide both lengths, for the forward and the two backward kernels."""
    largest = lambda length: max(size for size in range(LANES, BLOCK + 1, LANES) if length % size == 0)
    q, kv = largest(queries), largest(keys)
    return dict(block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
                block_q_dq=q, block_kv_dq=kv)
