"""Log-probabilities of given tokens from hidden states, without ever holding logits for all tokens
at once.

At Qwen2.5's vocabulary of 152k one token's float32 logits are 0.6 MB, so 16k tokens would need 10
GB, and as much again in the backward pass. Here the tokens go through the output head in pieces; a
piece's logits are dropped after use and computed again when its gradient is needed. The gradient is
written out: it needs one array of a piece's size where automatic differentiation keeps several, and
on a mesh each device sums up its head's gradient over all its pieces before any of it is sent.

Prompts, tool results and padding stand between the tokens of a loss. Those that it uses come first,
and there are only as many pieces as they fill.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from sensesearch_jax.runtime.mesh import current, mesh_axes, spec

CHUNK = 256
"""Tokens that go through the head at once on a device."""


@jax.named_scope('head')
def token_log_probs(
    hidden: Float[Array, '*rows tokens D'],
    head: Float[Array, 'V D'],
    targets: Int[Array, '*rows tokens'],
    *,
    wanted: Bool[Array, '*rows tokens'] | None = None,
    suppressed: Shaped[Array, ' V'] | None = None,
    temperature: float | Float[Array, ''] = 1.0,
    chunk: int = CHUNK,
) -> tuple[Float[Array, '*rows tokens'], Float[Array, '*rows tokens']]:
    r"""Log-probability of each target token, and the entropy of the distribution it is taken from.

    .. math:: z = \mathrm{head}\, h / T, \quad \ell = z_{target} - \mathrm{logsumexp}(z), \quad
              H = -\sum_v p_v \log p_v

    Equal to a log-softmax over all logits, values and gradients, in the memory of one piece: logits
    of at most [chunk, V] exist on a device at a time, forward and backward. On a mesh rows and
    tokens stay sharded, tokens over its sequence axis, and the vocabulary over its tensor axis.

    Args:
      hidden: [..., tokens, D] final hidden states, at the positions that predict the targets.
      head: [V, D] output head; the embedding table where the two are tied.
      targets: [..., tokens] token ids. An id outside the vocabulary (a padding value such as -100)
        gives NaN, which the masks of `losses` remove and nothing else hides.
      wanted: [..., tokens], the tokens whose values are used. All others get 0, and take no part in
        gradients. None: all are.
      suppressed: [V], nonzero for ids that the sampler cannot draw (vision placeholders); they get
        probability 0, and -inf as log-probability where they are the target. At least one id must
        remain.
      temperature: the logits are divided by it; above 0. Pass what the sampler used.
      chunk: most tokens that go through the head at once on a device, at least 1; for memory and
          speed only.

    Returns:
      (log_probs, entropy): each [..., tokens], in nats, in at least float32. Both are
      differentiable with respect to hidden, head and a traced temperature.

    Raises:
      ValueError: shapes do not match, or temperature or chunk is out of range.
    """
    _check(hidden, head, targets, wanted, suppressed, temperature, chunk)
    dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    if targets.size == 0:
        return jnp.zeros(targets.shape, dtype), jnp.zeros(targets.shape, dtype)
    banned = (
        jnp.zeros(head.shape[0], bool)
        if suppressed is None
        else jnp.asarray(suppressed).astype(bool)
    )
    used = jnp.ones(targets.shape, bool) if wanted is None else jnp.asarray(wanted)
    hidden, head, targets = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets)
    return _log_probs(chunk, hidden, head, targets, used, banned, jnp.asarray(temperature, dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(
    chunk: int,
    hidden: Array,
    head: Array,
    targets: Array,
    used: Array,
    banned: Array,
    temperature: Array,
):
    return _forward(chunk, hidden, head, targets, used, banned, temperature)[0]


def _forward(chunk, hidden, head, targets, used, banned, temperature):
    tokens, vocabulary, _ = _specs(hidden, head)
    local = functools.partial(_forward_pieces, chunk, _axes(tokens), _axes(vocabulary))
    if current() is not None:
        replicated = PartitionSpec()
        local = jax.shard_map(
            local,
            in_specs=(tokens, vocabulary, tokens, tokens, vocabulary, replicated),
            out_specs=tokens,
            check_vma=False,
        )
    log_probs, entropy, normalizer = local(hidden, head, targets, used, banned, temperature)
    return (log_probs, entropy), (
        *(hidden, head, targets, used, banned, temperature),
        *(entropy, normalizer),
    )


def _backward(chunk, residuals, gradients):
    tokens, vocabulary, to_head = _specs(*residuals[:2])
    scattered = _axes(to_head[1:])
    local = functools.partial(_backward_pieces, chunk, _axes(tokens), _axes(vocabulary), scattered)
    if current() is not None:
        replicated = PartitionSpec()
        local = jax.shard_map(
            local,
            in_specs=(*(tokens, vocabulary, tokens, tokens, vocabulary, replicated), *[tokens] * 4),
            out_specs=(tokens, to_head, replicated),
            check_vma=False,
        )
    hidden, head, temperature = local(*residuals, *gradients)
    return hidden, head, None, None, None, temperature


_log_probs.defvjp(_forward, _backward)


def _specs(hidden: Array, head: Array) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
    """Shardings of tokens, of the head's vocabulary and of its gradient on the current mesh."""
    mesh = current()
    if mesh is None:
        return PartitionSpec(), PartitionSpec(), PartitionSpec()
    shape = hidden.shape[:-1]
    axes = ('rows', *['members'] * (len(shape) - 2), 'sequence')[: len(shape)]
    tokens = spec(axes, shape, mesh)
    vocabulary, embed = spec(('vocabulary', 'embed'), head.shape, mesh)
    # A sum over tokens may as well be sharded like the parameter; without tokens elsewhere to sum
    # over it is replicated.
    scattered = (embed,) if embed and set(mesh_axes(embed)) <= set(_axes(tokens)) else ()
    return tokens, PartitionSpec(vocabulary), PartitionSpec(vocabulary, *scattered)


def _axes(places: Iterable[str | tuple[str, ...] | None]) -> tuple[str, ...]:
    """The mesh axes that shard some dimensions."""
    return tuple(axis for part in places for axis in mesh_axes(part))


def _forward_pieces(chunk, shards, axes, hidden, head, targets, used, banned, temperature):
    """Log-probs, entropy and normalizer of the tokens of one shard."""

    def piece(hidden: Array, targets: Array) -> tuple[Array, Array, Array]:
        logits, allowed = _logits(hidden, head, banned, temperature)
        top = _over(jax.lax.pmax, jnp.max(allowed, axis=-1), axes)
        normalizer = top + jnp.log(
            _over(jax.lax.psum, jnp.exp(allowed - top[:, None]).sum(-1), axes)
        )
        # A masked sum, no gather: it works where the vocabulary is sharded.
        here = _ids(head, axes) == targets[:, None]
        picked = _over(jax.lax.psum, jnp.where(here, allowed, 0).sum(-1), axes)
        inside = (targets >= 0) & (targets < _over(jax.lax.psum, head.shape[0], axes))
        # A sum of terms that are never negative; normalizer - sum(p z) would lose digits where
        # logits are large.
        terms = jnp.exp(allowed - normalizer[:, None]) * (normalizer[:, None] - logits)
        entropy = _over(jax.lax.psum, terms.sum(-1), axes)
        return jnp.where(inside, picked - normalizer, jnp.nan), entropy, normalizer

    pieces = _Pieces.of(chunk, used, shards)
    flat, states = targets.reshape(-1), hidden.reshape(-1, hidden.shape[-1])

    def body(i, found):
        at = pieces.tokens(i)
        values = piece(_taken(states, at), _taken(flat, at))
        return tuple(_put(into, at, value) for into, value in zip(found, values))

    zeros = jnp.zeros(flat.shape, temperature.dtype)
    found = jax.lax.fori_loop(0, pieces.count, body, (zeros, zeros, zeros))
    return tuple(jnp.where(used, x.reshape(targets.shape), 0) for x in found)


def _backward_pieces(
    chunk,
    shards,
    axes,
    scattered,
    hidden,
    head,
    targets,
    used,
    banned,
    temperature,
    entropy,
    normalizer,
    to_log_prob,
    to_entropy,
):
    """Gradients of hidden states, head and temperature from those of log-probs and entropy.

    dl/dz = onehot - p and dH/dz = -p (log p + H), with p = 0 for what is suppressed.
    """

    def piece(hidden, targets, entropy, normalizer, to_log_prob, to_entropy):
        logits, allowed = _logits(hidden, head, banned, temperature)
        log_p = logits - normalizer[:, None]
        here = (_ids(head, axes) == targets[:, None]) & ~banned
        gradient = jnp.where(here, to_log_prob[:, None], 0) - jnp.exp(
            allowed - normalizer[:, None]
        ) * (to_log_prob[:, None] + to_entropy[:, None] * (log_p + entropy[:, None]))
        to_temperature = -(gradient * logits).sum() / temperature
        gradient = (gradient / temperature).astype(hidden.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=normalizer.dtype)
        to_hidden = product('nv,vd->nd', gradient, head).astype(hidden.dtype)
        return product('nv,nd->vd', gradient, hidden), to_temperature, to_hidden

    pieces = _Pieces.of(chunk, used, shards)
    known = used & (targets >= 0) & (targets < _over(jax.lax.psum, head.shape[0], axes))
    to_log_prob, to_entropy = jnp.where(known, to_log_prob, 0), jnp.where(used, to_entropy, 0)
    given = [x.reshape(-1) for x in (targets, entropy, normalizer, to_log_prob, to_entropy)]
    states = hidden.reshape(-1, hidden.shape[-1])

    def body(i, sums):
        at = pieces.tokens(i)
        to_head, to_temperature, to_hidden = piece(
            _taken(states, at), *(_taken(x, at) for x in given)
        )
        return (sums[0] + to_head, sums[1] + to_temperature, _put(sums[2], at, to_hidden))

    start = (
        jnp.zeros(head.shape, normalizer.dtype),
        jnp.zeros((), normalizer.dtype),
        jnp.zeros_like(states),
    )
    to_head, to_temperature, to_hidden = jax.lax.fori_loop(0, pieces.count, body, start)
    to_hidden = to_hidden.reshape(hidden.shape)
    if scattered:
        to_head = jax.lax.psum_scatter(to_head, scattered, scatter_dimension=1, tiled=True)
    others = tuple(axis for axis in shards if axis not in scattered)
    to_head = _over(jax.lax.psum, to_head, others)
    to_temperature = _over(jax.lax.psum, to_temperature, shards + axes)
    to_hidden = _over(jax.lax.psum, to_hidden, axes)
    return to_hidden, to_head.astype(head.dtype), to_temperature.astype(temperature.dtype)


class _Pieces(NamedTuple):
    """Pieces of one shard's tokens, those that are used first.

    Attributes:
        order: [pieces, size], places of tokens; past the last one where a piece is not full.
        count: of the pieces that any shard has to run.
    """

    order: Int[Array, 'pieces size']
    count: Int[Array, '']

    @classmethod
    def of(cls, chunk: int, used: Bool[Array, ' *rows'], shards: tuple[str, ...]) -> _Pieces:
        """The pieces of a shard.

        Args:
            chunk: most tokens of a piece.
            used: the shard's tokens that are used.
            shards: mesh axes that shard the tokens.
        """
        # As few pieces as the limit allows, all of one size: the least padding.
        most = math.ceil(used.size / chunk)
        size = math.ceil(used.size / most)
        order = jnp.argsort(~used.reshape(-1), stable=True)
        order = jnp.pad(order, (0, most * size - used.size), constant_values=used.size)
        # The same for all shards, as the pieces have collectives in them.
        count = -(-_over(jax.lax.pmax, used.sum(), shards) // size)
        return cls(order.reshape(most, size), count)

    def tokens(self, i: Int[Array, '']) -> Int[Array, ' size']:
        """Places of piece i's tokens."""
        return jax.lax.dynamic_index_in_dim(self.order, i, keepdims=False)


def _taken(x: Shaped[Array, ' n *rest'], at: Int[Array, ' size']) -> Array:
    """The values of some places, and zeros past the last one."""
    return x.at[at].get(mode='fill', fill_value=0)


def _put(into: Shaped[Array, ' n *rest'], at: Int[Array, ' size'], values: Array) -> Array:
    """The array with other values at some places; those past the last one are left out."""
    return into.at[at].set(values, mode='drop', unique_indices=True)


def _logits(hidden: Array, head: Array, banned: Array, temperature: Array) -> tuple[Array, Array]:
    """[n, V] logits with 0 where an id is banned, and with -inf there.

    0 * -inf is NaN, so they are -inf only where they are exponentiated or picked.
    """
    logits = (
        jnp.einsum('nd,vd->nv', hidden, head, preferred_element_type=temperature.dtype)
        / temperature
    )
    return jnp.where(banned, 0, logits), jnp.where(banned, -jnp.inf, logits)


def _ids(head: Array, axes: tuple[str, ...]) -> Array:
    """The ids of this shard's part of the vocabulary."""
    first = 0 if not axes else jax.lax.axis_index(axes) * head.shape[0]
    return first + jnp.arange(head.shape[0])


def _over(combine, x, axes):
    """A collective over mesh axes, nothing where there are none."""
    return combine(x, axes) if axes else x


def _check(
    hidden: Array,
    head: Array,
    targets: Array,
    wanted: Array | None,
    suppressed: Array | None,
    temperature: float | Array,
    chunk: int,
) -> None:
    if hidden.ndim < 2 or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f'hidden must be [..., tokens, D] and targets [..., tokens], '
            f'got {hidden.shape} and {targets.shape}.'
        )
    if wanted is not None and jnp.shape(wanted) != targets.shape:
        raise ValueError(f'wanted must be {targets.shape} like targets, got {jnp.shape(wanted)}.')
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f'head must be [V, {hidden.shape[-1]}] to fit the hidden states, got {head.shape}.'
        )
    if suppressed is not None and jnp.shape(suppressed) != head.shape[:1]:
        raise ValueError(
            f'suppressed must be [{head.shape[0]}], one entry per id, got {jnp.shape(suppressed)}.'
        )
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f'temperature must be above 0, got {temperature}.')
    if chunk < 1:
        raise ValueError(f'chunk must be at least 1, got {chunk}.')
