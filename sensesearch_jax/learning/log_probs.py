"""Log-probabilities of given tokens from hidden states, without ever holding logits for all tokens at once.

At Qwen2.5's vocabulary of 152k one token's float32 logits are 0.6 MB, so 16k tokens would need 10 GB, and as
much again in the backward pass. Here the tokens go through the output head in pieces; a piece's logits are
dropped after use and computed again when its gradient is needed.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def token_log_probs(
    hidden: Float[Array, "*rows tokens D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "*rows tokens"],
    *,
    suppressed: Shaped[Array, "V"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    chunk: int = 512,
) -> tuple[Float[Array, "*rows tokens"], Float[Array, "*rows tokens"]]:
    r"""Log-probability of each target token, and the entropy of the distribution it is taken from.

    .. math:: z = \mathrm{head}\, h / T, \quad \ell = z_{target} - \mathrm{logsumexp}(z), \quad
              H = -\sum_v p_v \log p_v

    Equal to a log-softmax over all logits, values and gradients, in the memory of one piece: logits of at
    most [rows, chunk, V] exist at a time, forward and backward. Only the last token axis is cut, so that rows
    may stay sharded over devices.

    Args:
      hidden: [..., tokens, D] final hidden states, at the positions that predict the targets.
      head: [V, D] output head; the embedding table where the two are tied.
      targets: [..., tokens] token ids. An id outside the vocabulary (a padding value such as -100) gives NaN,
        which the masks of `losses` remove and nothing else hides.
      suppressed: [V], nonzero for ids that the sampler cannot draw (vision placeholders); they get
        probability 0, and -inf as log-probability where they are the target. At least one id must remain.
      temperature: the logits are divided by it; above 0. Pass what the sampler used.
      chunk: most tokens of a row that go through the head at once, at least 1; for memory and speed only.

    Returns:
      (log_probs, entropy): each [..., tokens], in nats, in at least float32. Both are differentiable with
      respect to hidden, head and a traced temperature.

    Raises:
      ValueError: shapes do not match, or temperature or chunk is out of range.
    """
    _check(hidden, head, targets, suppressed, temperature, chunk)
    *rows, tokens, width = hidden.shape
    if tokens == 0:
        empty = jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32))
        return empty, empty

    # Without the checkpoint the scan would keep every piece's logits for the backward pass: the whole array.
    @jax.checkpoint
    def piece(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return _plain(hidden, head, targets, suppressed, temperature)

    # As few pieces as the limit allows, all of one size: the least padding.
    pieces = math.ceil(tokens / chunk)
    if pieces == 1:
        return piece(hidden, targets)
    size = math.ceil(tokens / pieces)
    padding = pieces * size - tokens
    lead = [(0, 0)] * len(rows)
    hidden = jnp.pad(hidden, [*lead, (0, padding), (0, 0)]).reshape(*rows, pieces, size, width)
    targets = jnp.pad(targets, [*lead, (0, padding)]).reshape(*rows, pieces, size)
    axis = len(rows)
    log_probs, entropy = jax.lax.map(
        lambda pair: piece(*pair), (jnp.moveaxis(hidden, axis, 0), jnp.moveaxis(targets, axis, 0))
    )
    return _joined(log_probs, axis, tokens), _joined(entropy, axis, tokens)


def _plain(
    hidden: Array, head: Array, targets: Array, suppressed: Array | None, temperature: float | Array
) -> tuple[Array, Array]:
    """Log-probs and entropy of one piece, [..., tokens] each."""
    dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=dtype) / temperature
    ids = jnp.arange(head.shape[0])
    # 0 * -inf is NaN, so suppressed logits are -inf only where they are exponentiated or picked.
    allowed = logits
    if suppressed is not None:
        suppressed = jnp.asarray(suppressed).astype(bool)
        allowed = jnp.where(suppressed, -jnp.inf, logits)
        logits = jnp.where(suppressed, 0, logits)
    normalizer = jax.nn.logsumexp(allowed, axis=-1)
    # A masked sum, no gather: it works where the vocabulary is sharded, and its gradient is not a scatter.
    picked = jnp.sum(jnp.where(ids == targets[..., None], allowed, 0), axis=-1)
    inside = (targets >= 0) & (targets < head.shape[0])
    log_probs = jnp.where(inside, picked - normalizer, jnp.nan)
    # A sum of terms that are never negative; normalizer - sum(p z) would lose digits where logits are large.
    entropy = jnp.sum(jnp.exp(allowed - normalizer[..., None]) * (normalizer[..., None] - logits), axis=-1)
    return log_probs, entropy


def _joined(values: Array, axis: int, tokens: int) -> Array:
    """[pieces, ..., size] back to [..., tokens], without the padding."""
    values = jnp.moveaxis(values, 0, axis)
    return values.reshape(*values.shape[:axis], -1)[..., :tokens]


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
            f"hidden must be [..., tokens, D] and targets [..., tokens], "
            f"got {hidden.shape} and {targets.shape}."
        )
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1]:
        raise ValueError(f"head must be [V, {hidden.shape[-1]}] to fit the hidden states, got {head.shape}.")
    if suppressed is not None and jnp.shape(suppressed) != head.shape[:1]:
        raise ValueError(
            f"suppressed must be [{head.shape[0]}], one entry per id, got {jnp.shape(suppressed)}."
        )
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
