"""The one attention of the decoder: own tokens causally, contexts fully, merged under one softmax.

A context is keys and values that were computed before: the prompt of a group (shared by its members), a member's
earlier turns, or the tokens sampled since the last host look. Decode is one query, a tool response a few,
training all of them; nothing else changes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any visible key gives a finite (and unused) result


class Context(NamedTuple):
    """Keys and values computed earlier. The group axis g is G, or 1 where the whole group shares the context.

    With a leading layer axis on `keys` and `values` it is the context of all layers.
    """

    keys: Float[Array, '*layers b g c k e']
    values: Float[Array, '*layers b g c k e']
    valid: Bool[Array, 'b g c']


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
    b, g, s, h, e = queries.shape
    k = keys.shape[3]
    q = (queries * e**-0.5).reshape(b, g, s, k, h // k, e)
    causal = jnp.tril(jnp.ones((s, s), bool))
    own = jnp.where(causal & valid[:, :, None, None, None, :],
                    jnp.einsum('bgskre,bgtke->bgkrst', q, keys, preferred_element_type=jnp.float32), MASKED)
    scores = []
    for context in contexts:
        if context.keys.shape[1] == 1:
            score = jnp.einsum('bgskre,bcke->bgkrsc', q, context.keys[:, 0], preferred_element_type=jnp.float32)
        else:
            score = jnp.einsum('bgskre,bgcke->bgkrsc', q, context.keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(context.valid[:, :, None, None, None, :], score, MASKED))
    weights = jax.nn.softmax(jnp.concatenate([*scores, own], axis=-1), axis=-1).astype(values.dtype)
    out, start = 0, 0
    for context in contexts:
        part = weights[..., start:start + context.keys.shape[2]]
        start += context.keys.shape[2]
        if context.values.shape[1] == 1:
            out += jnp.einsum('bgkrsc,bcke->bgskre', part, context.values[:, 0])
        else:
            out += jnp.einsum('bgkrsc,bgcke->bgskre', part, context.values)
    out += jnp.einsum('bgkrst,bgtke->bgskre', weights[..., start:], values)
    return out.reshape(b, g, s, h, e).astype(queries.dtype)


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
