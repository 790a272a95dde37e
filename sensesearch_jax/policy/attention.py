"""The one attention of the decoder: own tokens causally, contexts fully, merged under one softmax.

`attend` is the only entrance; what computes it is chosen by the platform that the program is compiled for.

A context is keys and values that were computed before: the prompt of a group (shared by its members), a member's
earlier turns, or the tokens sampled since the last host look. Decode is one query, a tool response a few,
training all of them; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.policy import kernels
from sensesearch_jax.runtime.mesh import current, platform, spec

LONG = 32  # queries per member from which all scores at once are too many to keep
TILE = 256  # queries whose scores with all keys stay in a CPU's cache
MASKED = -1e30  # finite, so that a row without any visible key gives a finite (and unused) result


class Context(NamedTuple):
    """Keys and values computed earlier. The group axis g is G, or 1 where the whole group shares the context.

    With a leading layer axis on `keys` and `values` it is the context of all layers. Heads stand before tokens, and
    keys the other way round than values: so one query meets them at the speed of memory, on a CPU as well.
    """

    keys: Float[Array, '*layers b g k e c']
    values: Float[Array, '*layers b g k c e']
    valid: Bool[Array, 'b g c']

    @classmethod
    def of(cls, keys: Float[Array, '*layers b g c k e'], values: Float[Array, '*layers b g c k e'],
           valid: Bool[Array, 'b g c']) -> Context:
        """From keys and values in the order of tokens, as a forward pass leaves them."""
        return cls(jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2), valid)

    @property
    def in_order(self) -> tuple[Array, Array, Array]:
        """Keys, values and validity with tokens before heads, as `of` takes them."""
        return jnp.moveaxis(self.keys, -1, -3), jnp.swapaxes(self.values, -3, -2), self.valid


def attend(queries: Float[Array, 'b g s h e'], keys: Float[Array, 'b g s k e'],
           values: Float[Array, 'b g s k e'], valid: Bool[Array, 'b g s'],
           contexts: tuple[Context, ...] = ()) -> Float[Array, 'b g s h e']:
    """Grouped-query attention of each member's own tokens (causal) and of all valid tokens of each context.

    Args:
        queries, keys, values: after rotation; H is a multiple of K.
        valid: which own tokens are real; padding is never attended to.
        contexts: each without a layer axis; a context with group axis 1 is read once for all G members.
    Returns:
        the attended values, in the queries' dtype. The softmax is in float32.
    """
    operands = queries, keys, values, valid, contexts
    implementation = choose(queries.shape[2])
    mesh = current()
    if mesh is None:
        return implementation(*operands)
    # Attention needs nothing of other rows or heads. Said so, no kernel has to be taken apart by the compiler, and a
    # CPU may map over the rows that it has.
    place = lambda axes: lambda x: spec(axes, x.shape, mesh)
    tokens, heads = ('rows', None, None), lambda name: ('rows', None, None, name, None)
    earlier = place(('rows', None, 'kv_heads', None, None))
    context = Context(earlier, earlier, place(tokens))
    where = (place(heads('heads')), *[place(heads('kv_heads'))] * 2, place(tokens), (context,) * len(contexts))
    specs = jax.tree.map(lambda at, x: at(x), where, operands)
    if mesh.shape['tensor'] > 1 and specs[1][3] is None:
        raise ValueError(f"The mesh's tensor axis of {mesh.shape['tensor']} does not divide {keys.shape[3]} key/value "
                         'heads; choose one that does.')
    return jax.shard_map(implementation, in_specs=specs, out_specs=specs[0], check_vma=False)(*operands)


def choose(length: int) -> Callable:
    """The implementation of `attend` for so many queries per member on the current platform."""
    if length < LONG:
        return attend_at_once
    return {'cpu': attend_by_head, 'tpu': kernels.attend_splash, 'gpu': kernels.attend_cudnn}.get(
        platform(), attend_at_once)


def attend_at_once(queries, keys, values, valid, contexts):
    """All scores as one array: what a few queries want, and any platform without a kernel of its own."""
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    # All products are plain ones of [queries, e] with [e, keys]; q counts a key head's R query heads, S tokens each.
    q = jnp.moveaxis((queries * e**-0.5).reshape(b, g, s, k, h // k, e), 2, 4).reshape(b, g, k, -1, e)
    of_group = lambda x: jnp.swapaxes(x, 1, 2).reshape(b, k, -1, x.shape[-1])  # the members' queries side by side
    of_member = lambda x: jnp.swapaxes(x.reshape(b, k, g, -1, x.shape[-1]), 1, 2)
    shared = [context.keys.shape[1] == 1 for context in contexts]
    scores = []
    for context, same in zip(contexts, shared):
        if same:
            score = of_member(jnp.einsum('bkqe,bkec->bkqc', of_group(q), context.keys[:, 0],
                                         preferred_element_type=jnp.float32))
        else:
            score = jnp.einsum('bgkqe,bgkec->bgkqc', q, context.keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(context.valid[:, :, None, None, :], score, MASKED))
    causal = jnp.tile(jnp.tril(jnp.ones((s, s), bool)), (h // k, 1))
    own = jnp.einsum('bgkqe,bgtke->bgkqt', q, keys, preferred_element_type=jnp.float32)
    scores.append(jnp.where(causal & valid[:, :, None, None, :], own, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(values.dtype)
    *parts, own = jnp.split(weights, np.cumsum([c.keys.shape[-1] for c in contexts]), axis=-1)
    out = jnp.einsum('bgkqt,bgtke->bgkqe', own, values)
    for part, context, same in zip(parts, contexts, shared):
        if same:
            out += of_member(jnp.einsum('bkqc,bkce->bkqe', of_group(part), context.values[:, 0]))
        else:
            out += jnp.einsum('bgkqc,bgkce->bgkqe', part, context.values)
    out = jnp.moveaxis(out.reshape(b, g, k, h // k, s, e), 4, 2)
    return out.reshape(b, g, s, h, e).astype(queries.dtype)


def attend_by_head(queries, keys, values, valid, contexts):
    """One member's key head at a time, its scores dropped and computed again for the gradient.

    Scores of all at once do not fit a CPU's caches: reading and writing them took four times as long as this.
    """
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    by_head = lambda x: jnp.moveaxis(x, 3, 1)  # [b, g, c, k, e] -> [b, k, g, c, e]
    queries = by_head((queries * e**-0.5).reshape(b, g, s, k, (h // k) * e)).reshape(b, k, g, s, h // k, e)
    tiles = range(0, s, TILE)

    def row(x):
        queries, keys, values, valid, contexts = x  # without b; valid: [g, s]
        shared = tuple(c.keys.shape[1] == 1 for c in contexts)

        def head(x):
            queries, keys, values, contexts = x

            @jax.checkpoint
            def member(x):
                queries, keys, values, valid, own_contexts = x  # [s, r, e], [s, e], [s, e], [s]
                own_contexts = iter(own_contexts)
                now = [tuple(part[0] for part in c) if same else next(own_contexts)
                       for c, same in zip(contexts, shared)]
                outs = []
                for first in tiles:  # a tile of queries meets no key behind its own end
                    last = min(first + TILE, s)
                    all_keys = jnp.concatenate([*(c[0] for c in now), keys[:last].T], axis=1)
                    all_values = jnp.concatenate([*(c[1] for c in now), values[:last]])
                    own = (jnp.arange(first, last)[:, None] >= jnp.arange(last)) & valid[:last]
                    mask = jnp.concatenate([*(jnp.broadcast_to(c[2], (last - first, len(c[2]))) for c in now), own], 1)
                    q = jnp.moveaxis(queries[first:last], 1, 0)
                    scores = jnp.einsum('rse,et->rst', q, all_keys, preferred_element_type=jnp.float32)
                    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(values.dtype)
                    outs.append(jnp.einsum('rst,te->sre', weights, all_values))
                return jnp.concatenate(outs)

            own_contexts = tuple(c for c, same in zip(contexts, shared) if not same)
            return jax.lax.map(member, (queries, keys, values, valid, own_contexts))

        spread = tuple((c.keys, c.values, jnp.broadcast_to(c.valid, (k, *c.valid.shape))) for c in contexts)
        return jax.lax.map(head, (queries, keys, values, spread))

    contexts = tuple(Context(c.keys.swapaxes(1, 2), c.values.swapaxes(1, 2), c.valid) for c in contexts)
    out = jax.lax.map(row, (queries, by_head(keys), by_head(values), valid, contexts))  # [b, k, g, s, r, e]
    return jnp.moveaxis(out, 1, 3).reshape(b, g, s, h, e).astype(queries.dtype)


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
