"""The one attention of the decoder: own tokens causally, contexts fully, merged under one softmax.

`attend` is the only entrance; what computes it is chosen by the platform that the program is compiled for.

A context is keys and values that were computed before: the prompt of a group (shared by its members), a member's
earlier turns, or the tokens sampled since the last host look. Decode is one query, a tool response a few,
training all of them; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.policy import kernels
from sensesearch_jax.policy.context import ATTENDED, MASKED, Context
from sensesearch_jax.policy.tiles import attend_by_head, attend_by_member
from sensesearch_jax.runtime.mesh import current, platform, spec

LONG = 32  # queries per member from which all scores at once are too many to keep


def attend(queries: Float[Array, 'b g s h e'], keys: Float[Array, 'b g s k e'],
           values: Float[Array, 'b g s k e'], valid: Bool[Array, 'b g s'],
           contexts: tuple[Context, ...] = ()) -> Float[Array, 'b g s h e']:
    """Grouped-query attention of each member's own tokens (causal) and of all valid tokens of each context.

    Args:
        queries, keys, values: after rotation; H is a multiple of K.
        valid: which own tokens are real. They come first: what is behind them is never attended to.
        contexts: each without a layer axis; a context with group axis 1 is read once for all G members.
    Returns:
        the attended values, in the queries' dtype. The softmax is in float32.
    """
    implementation = choose(queries, contexts)
    if queries.shape[2] >= LONG:  # what a context costs to make plain is little
        contexts = tuple(context.plain(keys.dtype) for context in contexts)
    operands = queries, keys, values, valid, contexts
    mesh = current()
    if mesh is None:
        return implementation(*operands)
    # Attention needs nothing of other rows or heads. Said so, no kernel has to be taken apart by the compiler, and a
    # CPU may map over the rows that it has.
    place = lambda axes: lambda x: spec(axes, x.shape, mesh)
    tokens, heads = ('rows', None, None), lambda name: ('rows', None, None, name, None)
    earlier, scales = place(('rows', None, 'kv_heads', None, None)), place(('rows', None, 'kv_heads', None))
    where = (place(heads('heads')), *[place(heads('kv_heads'))] * 2, place(tokens),
             tuple(Context(earlier, earlier, place(tokens), scales, scales) if c.key_scales is not None else
                   Context(earlier, earlier, place(tokens)) for c in contexts))
    specs = jax.tree.map(lambda at, x: at(x), where, operands)
    if mesh.shape['tensor'] > 1 and specs[1][3] is None:
        raise ValueError(f"The mesh's tensor axis of {mesh.shape['tensor']} does not divide {keys.shape[3]} key/value "
                         'heads; choose one that does.')
    return jax.shard_map(implementation, in_specs=specs, out_specs=specs[0], check_vma=False)(*operands)


def choose(queries: Float[Array, 'b g s h e'], contexts: tuple[Context, ...]) -> Callable:
    """The implementation of `attend` for these operands on the current platform."""
    here, few = platform(), queries.shape[2] < LONG
    if here == 'gpu' and kernels.cudnn_takes(queries.dtype):
        if not few:
            return kernels.attend_cudnn
        try:
            from sensesearch_jax.policy import decode_kernel  # Pallas takes long to import, and no CPU needs it
        except ImportError:  # jax 0.11 says that a later one will have no Triton
            return attend_at_once
        return decode_kernel.attend_few if decode_kernel.takes(queries, contexts) else attend_at_once
    if few:
        return attend_at_once
    return {'cpu': attend_by_head, 'tpu': kernels.attend_splash}.get(here, attend_by_member)


def attend_at_once(queries, keys, values, valid, contexts):
    """All scores as one array: what a few queries want."""
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    # All products are plain ones of [queries, e] with [e, keys]; q counts a key head's R query heads, S tokens each.
    q = jnp.moveaxis((queries * e**-0.5).reshape(b, g, s, k, h // k, e), 2, 4).reshape(b, g, k, -1, e)
    of_group = lambda x: jnp.swapaxes(x, 1, 2).reshape(b, k, -1, x.shape[-1])  # the members' queries side by side
    of_member = lambda x: jnp.swapaxes(x.reshape(b, k, g, -1, x.shape[-1]), 1, 2)
    shared = [context.keys.shape[1] == 1 for context in contexts]
    scores = []
    for context, same in zip(contexts, shared):
        earlier = context.keys.astype(q.dtype)
        if same:
            score = of_member(jnp.einsum('bkqe,bkec->bkqc', of_group(q), earlier[:, 0],
                                         preferred_element_type=jnp.float32))
        else:
            score = jnp.einsum('bgkqe,bgkec->bgkqc', q, earlier, preferred_element_type=jnp.float32)
        if context.key_scales is not None:
            score *= context.key_scales[:, :, :, None]
        scores.append(jnp.where(context.valid[:, :, None, None, :], score, MASKED))
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (h // k, 1))
    own = jnp.einsum('bgkqe,bgtke->bgkqt', q, keys, preferred_element_type=jnp.float32)
    scores.append(jnp.where(causal & valid[:, :, None, None, :], own, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(values.dtype)
    *parts, own = jnp.split(weights, np.cumsum([c.keys.shape[-1] for c in contexts]), axis=-1)
    out = jnp.einsum('bgkqt,bgtke->bgkqe', own, values)
    for part, context, same in zip(parts, contexts, shared):
        earlier = context.values.astype(values.dtype)
        if context.value_scales is not None:
            part *= context.value_scales[:, :, :, None].astype(part.dtype)
        if same:
            out += of_member(jnp.einsum('bkqc,bkce->bkqe', of_group(part), earlier[:, 0]))
        else:
            out += jnp.einsum('bgkqc,bgkce->bgkqe', part, earlier)
    out = jnp.moveaxis(out.reshape(b, g, k, h // k, s, e), 4, 2)
    return checkpoint_name(out.reshape(b, g, s, h, e).astype(queries.dtype), ATTENDED)


def rotate(x: Float[Array, '... s h e'], cos: Float[Array, '... s e'],
           sin: Float[Array, '... s e']) -> Float[Array, '... s h e']:
    """Rotary embedding in the half-split layout of Qwen: pairs are (i, i + E/2)."""
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    x32, turned = x.astype(jnp.float32), turned.astype(jnp.float32)
    return (x32 * cos[..., None, :] + turned * sin[..., None, :]).astype(x.dtype)


def text_rotary(positions: Int[Array, '3 *n'], head_width: int, theta: float,
                sections: tuple[int, int, int]) -> tuple[Float[Array, '*n e'], Float[Array, '*n e']]:
    """Cosines and sines of the 3-D multimodal rotary positions (Qwen2-VL, arXiv 2409.12191, section 2.1).

    The E/2 frequencies are dealt in order to time, height and width by `sections`.
    """
    half = head_width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    axis = jnp.repeat(jnp.arange(3), jnp.array(sections), total_repeat_length=half)
    angles = jnp.take(positions.astype(jnp.float32), axis, axis=0)  # [half, *n]
    angles = jnp.moveaxis(angles, 0, -1) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def vision_rotary(positions: Int[Array, '*n 2'], head_width: int,
                  theta: float) -> tuple[Float[Array, '*n e'], Float[Array, '*n e']]:
    """Cosines and sines of the tower's 2-D rotary positions: half of the frequencies for the row, half for the column."""
    quarter = head_width // 4
    frequencies = theta ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = positions.astype(jnp.float32)[..., None] * frequencies  # [*n, 2, quarter]
    angles = angles.reshape(*positions.shape[:-1], 2 * quarter)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)
