"""Log-probabilities of given tokens from hidden states, without ever holding logits for all tokens
at once.

At Qwen2.5's vocabulary of 152k one token's float32 logits are 0.6 MB, so 16k tokens would need 10
GB, and as much again in the backward pass. Here the tokens go through the output head in pieces; a
piece's logits are dropped after use and computed again when its gradient is needed. The gradient is
written out: it needs one array of a piece's size where automatic differentiation keeps several, and
on a mesh each device sums up its head's gradient over all its pieces before any of it is sent.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from sensesearch_jax.runtime.mesh import current, spec


@jax.named_scope('head')
def token_log_probs(
    hidden: Float[Array, '*rows tokens D'],
    head: Float[Array, 'V D'],
    targets: Int[Array, '*rows tokens'],
    *,
    suppressed: Shaped[Array, ' V'] | None = None,
    temperature: float | Float[Array, ''] = 1.0,
    chunk: int = 256,
) -> tuple[Float[Array, '*rows tokens'], Float[Array, '*rows tokens']]:
    r"""Log-probability of each target token, and the entropy of the distribution it is taken from.

    .. math:: z = \mathrm{head}\, h / T, \quad \ell = z_{target} - \mathrm{logsumexp}(z), \quad
              H = -\sum_v p_v \log p_v

    Equal to a log-softmax over all logits, values and gradients, in the memory of one piece: logits
    of at most [chunk, V] exist on a device at a time, forward and backward. On a mesh the first
    axis is sharded over its data and fsdp axes and the vocabulary over its tensor axis.

    Args:
      hidden: [..., tokens, D] final hidden states, at the positions that predict the targets.
      head: [V, D] output head; the embedding table where the two are tied.
      targets: [..., tokens] token ids. An id outside the vocabulary (a padding value such as -100)
        gives NaN, which the masks of `losses` remove and nothing else hides.
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
    _check(hidden, head, targets, suppressed, temperature, chunk)
    dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    if targets.size == 0:
        return jnp.zeros(targets.shape, dtype), jnp.zeros(targets.shape, dtype)
    banned = (
        jnp.zeros(head.shape[0], bool)
        if suppressed is None
        else jnp.asarray(suppressed).astype(bool)
    )
    hidden, head, targets = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets)
    return _log_probs(chunk, hidden, head, targets, banned, jnp.asarray(temperature, dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(
    chunk: int, hidden: Array, head: Array, targets: Array, banned: Array, temperature: Array
):
    return _forward(chunk, hidden, head, targets, banned, temperature)[0]


def _forward(chunk, hidden, head, targets, banned, temperature):
    rows, vocabulary, _ = _specs(hidden, head)
    local = functools.partial(_forward_pieces, chunk, _first_axes(vocabulary))
    if current() is not None:
        replicated = PartitionSpec()
        local = jax.shard_map(
            local,
            in_specs=(rows, vocabulary, rows, vocabulary, replicated),
            out_specs=rows,
            check_vma=False,
        )
    log_probs, entropy, normalizer = local(hidden, head, targets, banned, temperature)
    return (log_probs, entropy), (hidden, head, targets, banned, temperature, entropy, normalizer)


def _backward(chunk, residuals, gradients):
    rows, vocabulary, to_head = _specs(*residuals[:2])
    local = functools.partial(
        _backward_pieces, chunk, _first_axes(rows), _first_axes(vocabulary), len(to_head) > 1
    )
    if current() is not None:
        replicated = PartitionSpec()
        local = jax.shard_map(
            local,
            in_specs=(rows, vocabulary, rows, vocabulary, replicated, rows, rows, rows, rows),
            out_specs=(rows, to_head, replicated),
            check_vma=False,
        )
    hidden, head, temperature = local(*residuals, *gradients)
    return hidden, head, None, None, temperature


_log_probs.defvjp(_forward, _backward)


def _specs(hidden: Array, head: Array) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
    """Shardings of rows, of the head's vocabulary and of the head's gradient on the current mesh."""
    mesh = current()
    if mesh is None:
        return PartitionSpec(), PartitionSpec(), PartitionSpec()
    rows = spec(('rows',), hidden.shape[:1], mesh)
    vocabulary, embed = spec(('vocabulary', 'embed'), head.shape, mesh)
    # A sum over rows may as well be sharded like the parameter; without rows to sum over it is
    # replicated.
    scattered = (embed,) if embed is not None and rows[0] is not None else ()
    return rows, PartitionSpec(vocabulary), PartitionSpec(vocabulary, *scattered)


def _first_axes(places: PartitionSpec) -> str | tuple[str, ...] | None:
    """The mesh axes that shard the first dimension."""
    return places[0] if len(places) else None


def _forward_pieces(chunk, axes, hidden, head, targets, banned, temperature):
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

    flat, splitter = _splitter(chunk, targets)
    found = jax.lax.map(
        lambda x: piece(*x), (splitter(hidden.reshape(-1, hidden.shape[-1])), splitter(flat))
    )
    return tuple(x.reshape(-1)[: flat.size].reshape(targets.shape) for x in found)


def _backward_pieces(
    chunk,
    rows,
    axes,
    scatter,
    hidden,
    head,
    targets,
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

    def piece(sums, x):
        hidden, targets, entropy, normalizer, to_log_prob, to_entropy = x
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
        return (
            sums[0] + product('nv,nd->vd', gradient, hidden),
            sums[1] + to_temperature,
        ), to_hidden

    flat, splitter = _splitter(chunk, targets)
    known = (flat >= 0) & (flat < _over(jax.lax.psum, head.shape[0], axes))
    to_log_prob = jnp.where(known, to_log_prob.reshape(-1), 0)
    pieces = (
        splitter(x)
        for x in (
            flat,
            entropy.reshape(-1),
            normalizer.reshape(-1),
            to_log_prob,
            to_entropy.reshape(-1),
        )
    )
    start = jnp.zeros(head.shape, normalizer.dtype), jnp.zeros((), normalizer.dtype)
    (to_head, to_temperature), to_hidden = jax.lax.scan(
        piece, start, (splitter(hidden.reshape(-1, hidden.shape[-1])), *pieces)
    )
    to_hidden = to_hidden.reshape(-1, hidden.shape[-1])[: flat.size].reshape(hidden.shape)
    if scatter:
        to_head = jax.lax.psum_scatter(to_head, 'fsdp', scatter_dimension=1, tiled=True)
    to_head = _over(
        jax.lax.psum, to_head, tuple(axis for axis in rows if axis != 'fsdp') if scatter else rows
    )
    to_temperature = _over(jax.lax.psum, _over(jax.lax.psum, to_temperature, rows), axes)
    to_hidden = _over(jax.lax.psum, to_hidden, axes)
    return to_hidden, to_head.astype(head.dtype), to_temperature.astype(temperature.dtype)


def _logits(hidden: Array, head: Array, banned: Array, temperature: Array) -> tuple[Array, Array]:
    """[n, V] logits with 0 where an id is banned, and with -inf there.

    0 * -inf is NaN, so they are -inf only where they are exponentiated or picked.
    """
    logits = (
        jnp.einsum('nd,vd->nv', hidden, head, preferred_element_type=temperature.dtype)
        / temperature
    )
    return jnp.where(banned, 0, logits), jnp.where(banned, -jnp.inf, logits)


def _ids(head: Array, axes: str | None) -> Array:
    """The ids of this shard's part of the vocabulary."""
    first = 0 if axes is None else jax.lax.axis_index(axes) * head.shape[0]
    return first + jnp.arange(head.shape[0])


def _over(combine, x, axes):
    """A collective over mesh axes, nothing where there are none."""
    return combine(x, axes) if axes else x


def _splitter(chunk: int, targets: Array):
    """The targets in one row, and a function that splits such rows into pieces
    [pieces, size, ...], padded with zeros.
    """
    flat = targets.reshape(-1)
    # As few pieces as the limit allows, all of one size: the least padding.
    pieces = math.ceil(flat.size / chunk)
    size = math.ceil(flat.size / pieces)

    def splitter(x: Array) -> Array:
        padded = jnp.pad(x, [(0, pieces * size - flat.size), *[(0, 0)] * (x.ndim - 1)])
        return padded.reshape(pieces, size, *x.shape[1:])

    return flat, splitter


def _check(
    hidden: Array,
    head: Array,
    targets: Array,
    suppressed: Array | None,
    temperature: float | Array,
    chunk: int,
) -> None:
    if hidden.ndim < 2 or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f'hidden must be [..., tokens, D] and targets [..., tokens], '
            f'got {hidden.shape} and {targets.shape}.'
        )
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
