"""Policy losses, KL estimates and cross-entropy over [trajectories, tokens], as masked (sum,
weight) pairs.

Every loss is the pair of a sum and the weight to divide it by. Pairs of micro-batches and of hosts
are added before the division, so the gradient is that of the whole batch however it is split, and a
part without tokens adds (0, 0).

Masked positions may hold anything, infinities and NaN included: they are replaced before the first
operation, not multiplied by 0 after the last one, because 0 * inf is NaN in the backward pass.

Notation: l is the log-probability under the policy being trained, l_old the one it had when the
batch was prepared, m the response mask (1 on tokens that the policy wrote), L_i the number of those in trajectory
i, A_i its advantage.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped

SumWeight = tuple[Float[Array, ''], Float[Array, '']]
TokenArray = Shaped[Array, 'trajectories tokens']
Ratio = Literal['sequence', 'token']
Aggregation = Literal['sequence', 'token', 'constant']
Importance = Literal['sequence', 'token']

LOG_RATIO_LIMIT = 20.0
"""Differences of log-probs are kept within this before exp; e^20 is far outside every clip range."""
SEQUENCE_LOG_RATIO_CAP = 10.0
"""Upper limit of the log of GSPO's ratio."""


@dataclass(frozen=True)
class PolicyOptions:
    """Options of `policy_loss`.

    Args:
      ratio: 'sequence' (GSPO) or 'token' (GRPO, PPO).
      clip_low: how far the ratio may fall below 1, in [0, 1]; GSPO's own paper uses 3e-4.
      clip_high: how far the ratio may rise above 1, at least 0; GSPO's own paper uses 4e-4.
      dual_clip: bound above 1 of the ratio for negative advantages, with ratio='token'; None leaves
          it out.
      soft_gate: temperatures above 0 for positive and for other advantages, with ratio='token' and
          without a dual clip, in place of the clip; None: the clip.
      aggregation: 'sequence' takes the mean over a trajectory's tokens and weighs trajectories
        equally, 'token' weighs all tokens equally, 'constant' takes the sum over a trajectory's
        tokens, divided by `constant_length`; by default the same as `ratio`.
      constant_length: tokens, above 0; used only with aggregation='constant'.
      importance: 'token' or 'sequence' to correct for the sampler's log-probs, None not to.
      importance_cap: upper limit of the importance weights, above 0; used only with `importance`.
    """

    ratio: Ratio = 'sequence'
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    soft_gate: tuple[float, float] | None = None
    aggregation: Aggregation | None = None
    constant_length: float = 1.0
    importance: Importance | None = None
    importance_cap: float = 2.0

    def check(self) -> None:
        """Refuses a choice that does not exist or a clip out of range; traced clips are not checked.

        Raises:
          ValueError: one of them is refused.
        """
        check_choice('ratio', self.ratio, ('sequence', 'token'))
        if self.aggregation is not None:
            check_choice('aggregation', self.aggregation, ('sequence', 'token', 'constant'))
        if not self.constant_length > 0:
            raise ValueError(f'constant_length must be above 0, got {self.constant_length}.')
        if self.soft_gate is not None:
            if self.ratio != 'token' or self.dual_clip is not None:
                raise ValueError(
                    "soft_gate gates token ratios in place of the clips: use it with ratio='token' and without "
                    'dual_clip.'
                )
            if not min(self.soft_gate) > 0:
                raise ValueError(f'soft_gate holds temperatures above 0, got {self.soft_gate}.')
        # Traced limits (a schedule inside jit) have no value yet.
        if not isinstance(self.clip_low, jax.core.Tracer) and not 0 <= self.clip_low <= 1:
            raise ValueError(f'clip_low must lie in [0, 1], got {self.clip_low}.')
        if not isinstance(self.clip_high, jax.core.Tracer) and not self.clip_high >= 0:
            raise ValueError(f'clip_high must be at least 0, got {self.clip_high}.')
        if self.dual_clip is None:
            return
        if self.ratio != 'token':
            raise ValueError(
                "dual_clip bounds token ratios: use it with ratio='token', or leave it out."
            )
        if not isinstance(self.dual_clip, jax.core.Tracer) and not self.dual_clip > 1:
            raise ValueError(
                f'dual_clip bounds the ratio from above and must exceed 1, got {self.dual_clip}.'
            )

    def check_importance(self, sampler_log_probs: Array | None) -> None:
        """Refuses importance weights without the sampler's log-probs, and these without weights.

        Raises:
          ValueError: one of them is refused.
        """
        if self.importance is None:
            if sampler_log_probs is not None:
                raise ValueError(
                    'sampler_log_probs without importance would be ignored: '
                    "choose importance='token' or 'sequence'."
                )
            return
        check_choice('importance', self.importance, ('sequence', 'token'))
        if sampler_log_probs is None:
            raise ValueError(f'importance={self.importance!r} needs sampler_log_probs.')
        if not isinstance(self.importance_cap, jax.core.Tracer) and not self.importance_cap > 0:
            raise ValueError(f'importance_cap must be above 0, got {self.importance_cap}.')


def policy_loss(
    log_probs: TokenArray,
    old_log_probs: TokenArray,
    advantages: Shaped[Array, ' trajectories'],
    mask: TokenArray,
    options: PolicyOptions = PolicyOptions(),
    sampler_log_probs: TokenArray | None = None,
) -> SumWeight:
    r"""Clipped policy-gradient loss with GSPO's or GRPO's ratio, or SAPO's, which is gated softly.

    .. math::
      \mathrm{loss}_{i,t} = \max(-A_i \rho_{i,t},\; -A_i\, \mathrm{clip}(\rho_{i,t}, 1 - low, 1 +
      high))

    ``ratio='sequence'`` is GSPO (arXiv 2507.18071) in its token form: one ratio for the whole
    trajectory, the geometric mean of its token ratios, through which every token gets its own
    gradient,

    .. math::
      \log s_i = \frac{1}{L_i} \sum_t m_{i,t} (\ell_{i,t} - \ell^{old}_{i,t}), \quad
      \log \rho_{i,t} = \min(\ell_{i,t} - sg[\ell_{i,t}] + sg[\log s_i],\; 10).

    Its value is s_i at every token and its gradient, after the mean over the tokens, that of s_i.
    With advantages from `advantages.batch_normalize` this is the objective of BN-GSPO
    (SenseNova-MARS, arXiv 2512.24330).

    ``ratio='token'`` is GRPO (arXiv 2402.03300) and PPO: log rho = l - l_old, kept within +-20.
    ``clip_high`` above ``clip_low`` is the "clip higher" of DAPO (arXiv 2503.14476).
    ``dual_clip=c`` bounds the loss by -A c where A < 0 (arXiv 1912.09729), so that a ratio far
    above 1 on a bad trajectory cannot dominate the batch.

    ``soft_gate=(a, b)`` replaces the clip by the gate of SAPO (arXiv 2511.20347), with the
    temperature tau = a where A > 0 and b elsewhere, over token ratios:

    .. math::
      \mathrm{loss}_{i,t} = -A_i\, \frac{4}{\tau}\, \sigma\big(\tau (\rho_{i,t} - 1)\big)

    Its slope is 1 at ratio 1, as without a gate, and dies away on both sides. The paper has (1,
    1.05), and the mean that 'sequence' takes.

    ``aggregation='constant'`` divides a trajectory's sum by ``constant_length`` in place of its
    own length, so that a token weighs the same in a short and in a long trajectory, and the mean is
    over trajectories: Dr. GRPO's (arXiv 2503.20783) with the longest length there can be. With the
    sequence ratio and length 1 it is LUSPO (arXiv 2602.05261), which weighs GSPO's loss of a
    trajectory by its length,

    .. math::
      \frac{1}{G} \sum_i L_i \max(-A_i s_i,\; -A_i\, \mathrm{clip}(s_i, 1 - low, 1 + high)).

    ``importance`` corrects for tokens that were sampled from another distribution than the
    trainer's old policy (other numerics, temperature): the loss is multiplied by min(w, cap) with w
    = exp(l_old - l_sampler) per token, or the product of these over the trajectory (truncated
    importance sampling, Ionides 2008, J. Comput. Graph. Stat. 17).

    Args:
      log_probs: [trajectories, tokens], in nats; the only argument a gradient flows into.
      old_log_probs: [trajectories, tokens], in nats, of the policy before the first update on this
          batch.
      advantages: [trajectories]; a row without tokens is ignored.
      mask: [trajectories, tokens], nonzero on tokens that the policy wrote.
      options: of the ratio, the clips and the mean.
      sampler_log_probs: [trajectories, tokens], in nats, of the distribution really sampled from;
        with `importance`.

    Returns:
      (sum, weight) in at least float32: the sum of trajectory means (or scaled sums) and the number
      of trajectories with any token, or the sum over tokens and their number. The loss to minimise is total sum /
      total weight.

    Raises:
      ValueError: shapes do not match, a limit is out of range, or options exclude each other.
    """
    options.check()
    options.check_importance(sampler_log_probs)
    mask, log_probs, old_log_probs, sampler_log_probs = masked(
        mask, log_probs=log_probs, old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs
    )
    old_log_probs = stop_gradient(old_log_probs)
    advantages = per_token(advantages, mask, log_probs.dtype)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, options.ratio))
    if options.soft_gate is None:
        clipped = jnp.clip(rho, 1 - options.clip_low, 1 + options.clip_high)
        losses = jnp.maximum(-advantages * rho, -advantages * clipped)
    else:
        tau = jnp.where(advantages > 0, *options.soft_gate)
        losses = -advantages * jax.nn.sigmoid(tau * (rho - 1)) * 4 / tau
    if options.dual_clip is not None:
        bounded = jnp.minimum(losses, -advantages * options.dual_clip)
        losses = jnp.where(advantages < 0, bounded, losses)
    if options.importance is not None:
        weights = importance_weights(
            old_log_probs, stop_gradient(sampler_log_probs), mask, options.importance
        )
        losses = losses * jnp.minimum(weights, options.importance_cap)
    aggregation = options.aggregation or options.ratio
    return aggregate(losses, mask, aggregation, options.constant_length)


def kl(log_probs: TokenArray, ref_log_probs: TokenArray, mask: TokenArray) -> SumWeight:
    r"""Per-token estimates of KL(policy || reference) from sampled tokens: e^d - d - 1, d = l_ref - l.

    Unbiased, of low variance and never negative: k3 of J. Schulman, "Approximating KL divergence"
    (2020), and GRPO's, arXiv 2402.03300, eq. 4. d is kept within +-20, so that one token which the
    policy has all but given up cannot overflow.

    Args:
      log_probs: [trajectories, tokens], in nats; the only argument a gradient flows into.
      ref_log_probs: [trajectories, tokens], in nats, of the reference policy.
      mask: [trajectories, tokens], nonzero on tokens that the policy wrote.

    Returns:
      (sum, weight) in nats per token.

    Raises:
      ValueError: shapes do not match.
    """
    mask, log_probs, ref_log_probs = masked(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)
    return aggregate(k3(stop_gradient(ref_log_probs) - log_probs), mask, 'token')


def cross_entropy(log_probs: TokenArray, mask: TokenArray) -> SumWeight:
    """Negative log-likelihood of the tokens under the mask: the loss of supervised fine-tuning.

    Args:
      log_probs: [trajectories, tokens], in nats, of the tokens that the policy is to write.
      mask: [trajectories, tokens], nonzero on those tokens.

    Returns:
      (sum, weight) in nats per token.

    Raises:
      ValueError: shapes do not match.
    """
    mask, log_probs = masked(mask, log_probs=log_probs)
    return aggregate(-log_probs, mask, 'token')


def log_ratio(log_probs: Array, old_log_probs: Array, mask: Array, ratio: Ratio) -> Array:
    """Log rho of masked inputs; see `policy_loss`.

    Args:
      log_probs: [trajectories, tokens], in nats, 0 outside the mask.
      old_log_probs: [trajectories, tokens], likewise.
      mask: [trajectories, tokens] booleans.
      ratio: 'sequence' or 'token'.
    """
    difference = log_probs - old_log_probs
    if ratio == 'token':
        return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    log_s = stop_gradient(jnp.sum(difference, axis=1, keepdims=True) / lengths)
    return jnp.minimum(log_probs - stop_gradient(log_probs) + log_s, SEQUENCE_LOG_RATIO_CAP)


def importance_weights(old: Array, sampler: Array, mask: Array, importance: Importance) -> Array:
    """Weights [trajectories, tokens] of the old policy against the sampler, before truncation.

    Args:
      old: [trajectories, tokens] log-probs, in nats, 0 outside the mask.
      sampler: [trajectories, tokens], likewise.
      mask: [trajectories, tokens] booleans.
      importance: 'token' or 'sequence'.
    """
    log_weights = old - sampler
    if importance == 'sequence':
        log_weights = jnp.broadcast_to(jnp.sum(log_weights, axis=1, keepdims=True), mask.shape)
    return jnp.exp(jnp.clip(log_weights, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def k3(d: Array) -> Array:
    """e^d - d - 1 with d within +-20; expm1 keeps the digits that e^d - 1 loses near 0."""
    d = jnp.clip(d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.expm1(d) - d


def aggregate(
    values: Array, mask: Array, aggregation: Aggregation, constant_length: float = 1.0
) -> SumWeight:
    """(sum, weight) of values under the mask.

    Args:
      values: [trajectories, tokens].
      mask: [trajectories, tokens] booleans.
      aggregation: see `policy_loss`.
      constant_length: see `policy_loss`.
    """
    values = jnp.where(mask, values, 0)
    if aggregation == 'token':
        return jnp.sum(values), jnp.sum(mask, dtype=values.dtype)
    lengths = jnp.sum(mask, axis=1, dtype=values.dtype)
    if aggregation == 'constant':
        return jnp.sum(values) / constant_length, jnp.sum(lengths > 0, dtype=values.dtype)
    return jnp.sum(jnp.sum(values, axis=1) / jnp.maximum(lengths, 1)), jnp.sum(
        lengths > 0, dtype=values.dtype
    )


def masked(mask: Array, **arrays: Array | None) -> tuple[Array | None, ...]:
    """The mask as booleans, then the arrays in one dtype of at least float32, 0 outside the mask."""
    mask = jnp.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f'mask must be [trajectories, tokens], got shape {mask.shape}.')
    for name, array in arrays.items():
        if array is not None and jnp.shape(array) != mask.shape:
            raise ValueError(
                f"{name} must have the mask's shape {mask.shape}, got {jnp.shape(array)}."
            )
    mask = mask.astype(bool)
    present = [jnp.asarray(array) for array in arrays.values() if array is not None]
    dtype = jnp.result_type(jnp.float32, *present)
    cleaned = (
        None if a is None else jnp.where(mask, jnp.asarray(a).astype(dtype), 0)
        for a in arrays.values()
    )
    return mask, *cleaned


def per_token(advantages: Array, mask: Array, dtype: jnp.dtype) -> Array:
    """Advantages as [trajectories, 1] without gradient, 0 for rows without tokens.

    Args:
      advantages: [trajectories].
      mask: [trajectories, tokens] booleans.
      dtype: of the result.
    """
    advantages = jnp.asarray(advantages)
    if advantages.shape != mask.shape[:1]:
        raise ValueError(
            f"advantages must have one entry for each of the mask's {mask.shape[0]} trajectories, "
            f'got shape {advantages.shape}.'
        )
    advantages = jnp.where(jnp.any(mask, axis=1), advantages.astype(dtype), 0)
    return stop_gradient(advantages)[:, None]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of the choices.

    Args:
      name: of the option.
      value: that is given.
      choices: that there are.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}.')
