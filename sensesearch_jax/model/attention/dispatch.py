"""Attention of the decoder: new tokens causally, KV caches fully, under one softmax.

`attend` is the only entrance; what computes it is chosen by the platform that the program is
compiled for.

A KV cache holds keys and values that were computed before: of the prompt of a group (shared by its
members), of a member's earlier turns, or of the tokens sampled since the host last read them. Decode
is one query, a tool response a few, training all of them; nothing else changes.

On a mesh with a sequence axis its devices divide the members of a group where it divides their number,
else the new tokens: to a device that has later ones the earlier keys and values are one more KV cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sensesearch_jax.model.attention import gpu_cudnn, tpu_splash
from sensesearch_jax.model.attention.cpu_tiled import attend_by_head, attend_by_member
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.attention.xla import attend_at_once
from sensesearch_jax.runtime.mesh import current, platform, spec

LONG = 32  # queries per member from which all scores at once are too many to keep


def attend(
    queries: Float[Array, 'b g s h e'],
    keys: Float[Array, 'b g s k e'],
    values: Float[Array, 'b g s k e'],
    valid: Bool[Array, 'b g s'],
    caches: tuple[KVCache, ...] = (),
) -> Float[Array, 'b g s h e']:
    """Grouped-query attention: causal over each member's new tokens, full over its KV caches.

    Args:
        queries: of the new tokens, after rotation; H is a multiple of K.
        keys: of the new tokens, after rotation.
        values: of the new tokens.
        valid: False on padding, which comes last and is never attended to.
        caches: each without a layer axis; one with group axis 1 is read once for all G members.

    Returns:
        the attended values, in the queries' dtype. The softmax is in float32.

    Raises:
        ValueError: the mesh's tensor axis does not divide the key/value heads.
    """
    implementation = choose(queries, caches)
    if queries.shape[2] >= LONG:  # then dequantizing a cache costs little
        caches = tuple(cache.dequantized(keys.dtype) for cache in caches)
    operands = queries, keys, values, valid, caches
    mesh = current()
    if mesh is None:
        return implementation(*operands)

    # Rows and heads are independent. With `shard_map` the compiler need not partition a kernel, and
    # a CPU may map over the rows of its shard.
    def spec_of(*axes):
        return lambda x: spec(axes, x.shape, mesh)

    new = 'rows', 'members', 'sequence'
    own = spec_of(*new, 'kv_heads', None)
    earlier = spec_of('rows', 'members', 'kv_heads', None, None)
    scales, seen = spec_of('rows', 'members', 'kv_heads', None), spec_of('rows', 'members', None)
    where = (
        *(spec_of(*new, 'heads', None), own, own, spec_of(*new)),
        tuple(
            KVCache(earlier, earlier, seen, scales, scales)
            if c.key_scales is not None
            else KVCache(earlier, earlier, seen)
            for c in caches
        ),
    )
    specs = jax.tree.map(lambda at, x: at(x), where, operands)
    if mesh.shape['tensor'] > 1 and specs[1][3] is None:
        raise ValueError(
            f"The mesh's tensor axis of {mesh.shape['tensor']} does not divide {keys.shape[3]} key/value "
            'heads; choose one that does.'
        )
    if specs[0][2] is not None:
        implementation = functools.partial(
            after_earlier_shards, implementation, mesh.shape['sequence']
        )
    return jax.shard_map(implementation, in_specs=specs, out_specs=specs[0], check_vma=False)(
        *operands
    )


def after_earlier_shards(implementation: Callable, shards: int, *operands):
    """Attention of one shard of the new tokens, to those of earlier shards too.

    Keys and values go from each device of the mesh's sequence axis to the next one, as in ring
    attention (Liu et al., arXiv 2310.01889), but stay: with grouped-query heads they are few. The
    gradient goes the same way back. Where there is no earlier shard zeros come in, which are not valid.

    Args:
        implementation: of `attend`.
        shards: devices along the sequence axis.
        operands: of `attend`, this shard's new tokens and all of the caches.
    """
    queries, keys, values, valid, caches = operands
    parts, part = [], (keys, values, valid)
    for _ in range(shards - 1):
        part = jax.lax.ppermute(part, 'sequence', [(i, i + 1) for i in range(shards - 1)])
        parts.append(part)
    earlier = KVCache.of(*(jnp.concatenate(x, 2) for x in zip(*reversed(parts))))
    return implementation(queries, keys, values, valid, (*caches, earlier))


def choose(queries: Float[Array, 'b g s h e'], caches: tuple[KVCache, ...]) -> Callable:
    """Implementation of `attend` for these operands on the current platform."""
    here, few = platform(), queries.shape[2] < LONG
    if here == 'gpu' and gpu_cudnn.cudnn_takes(queries.dtype):
        if not few:
            return gpu_cudnn.attend_cudnn
        kernel = gpu_decode_kernel()
        return kernel.attend_few if kernel and kernel.takes(queries, caches) else attend_at_once
    if here == 'tpu' and few:
        from sensesearch_jax.model.attention import tpu_decode

        return tpu_decode.attend_one if tpu_decode.takes(queries, caches) else attend_at_once
    if few:
        return attend_at_once
    return {'cpu': attend_by_head, 'tpu': tpu_splash.attend_splash}.get(here, attend_by_member)


def gpu_decode_kernel() -> ModuleType | None:
    """Module of the decode kernel on this GPU: Triton's while jax has it, else Hopper's on Hopper."""
    # Pallas takes long to import, and no CPU needs it.
    try:
        from sensesearch_jax.model.attention import gpu_decode
    except ImportError:  # jax 0.11 says that a later one will have no Triton
        from sensesearch_jax.model.attention import gpu_hopper_decode

        return gpu_hopper_decode if gpu_hopper_decode.on_hopper() else None
    return gpu_decode
