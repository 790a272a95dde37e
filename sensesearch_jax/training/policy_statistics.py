"""Statistics of the policy loss: ratios, clips, and the gap between sampler and trainer."""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped

from sensesearch_jax.training.losses import (
    Aggregation,
    Importance,
    Ratio,
    SumWeight,
    TokenArray,
    aggregate,
    check_choice,
    check_importance,
    check_options,
    importance_weights,
    k3,
    log_ratio,
    masked,
    per_token,
)

GAPS = 0.01, 0.1, 1.0
"""Gaps between sampler and trainer, in nats, beyond which the share of tokens is told."""


def policy_statistics(
    log_probs: TokenArray,
    old_log_probs: TokenArray,
    advantages: Shaped[Array, ' trajectories'],
    mask: TokenArray,
    *,
    ratio: Ratio = 'sequence',
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    soft_gate: tuple[float, float] | None = None,
    aggregation: Aggregation | None = None,
    constant_length: float = 1.0,
    importance: Importance | None = None,
    sampler_log_probs: TokenArray | None = None,
    importance_cap: float = 2.0,
) -> dict[str, SumWeight]:
    """Statistics of the policy loss, as (sum, weight) pairs that add up like the loss.

    Unlike in `policy_loss`, `sampler_log_probs` may be given without `importance`: the gap is worth
    watching even where nothing corrects for it.

    Args:
      log_probs: [trajectories, tokens], in nats.
      old_log_probs: [trajectories, tokens], in nats.
      advantages: [trajectories].
      mask: [trajectories, tokens], nonzero on response tokens.
      ratio: this and all others as for `policy_loss`.
      clip_low: how far the ratio may fall below 1.
      clip_high: how far the ratio may rise above 1.
      dual_clip: above 1, or None.
      soft_gate: temperatures, or None; with it nothing is clipped.
      aggregation: 'sequence', 'token', 'constant', or None for the same as `ratio`.
      constant_length: above 0.
      importance: 'token', 'sequence' or None.
      sampler_log_probs: [trajectories, tokens], in nats, or None.
      importance_cap: above 0.

    Returns:
      A dictionary of (sum, weight) pairs without gradients, weighed like the loss ('constant': all
      tokens equally):
        ratio: the importance ratio rho.
        clip_ratio: share of tokens where any clip binds; the sum of these parts:
        clip_ratio/low: where the lower one does (negative advantage, ratio below 1 - clip_low).
        clip_ratio/high: where the upper one does (positive advantage, ratio above 1 + clip_high).
        clip_ratio/dual: where the dual clip does; only with `dual_clip`.
        approx_kl: k3 estimate of KL(old || current) in nats per token.
        sampler_gap: |l_old - l_sampler| in nats per token; only with `sampler_log_probs`.
        sampler_kl: k3 estimate of KL(sampler || old) in nats per token; only with
            `sampler_log_probs`.
        sampler_gap_above/X: share of tokens whose gap is above X nats, for each of `GAPS`; only
            with `importance`.
        importance_weight: the truncated importance weight; only with `importance`.
        importance_truncated: share of weights truncated at `importance_cap`; only with `importance`.

    Raises:
      ValueError: as `policy_loss` does.
    """
    check_options(ratio, clip_low, clip_high, dual_clip, aggregation, soft_gate, constant_length)
    if importance is not None:
        check_importance(importance, sampler_log_probs, importance_cap)
    aggregation = aggregation or ratio
    if aggregation == 'constant':
        aggregation = 'token'  # a mean is wanted, not a sum
    mask, log_probs, old_log_probs, sampler_log_probs = masked(
        mask,
        log_probs=stop_gradient(log_probs),
        old_log_probs=stop_gradient(old_log_probs),
        sampler_log_probs=sampler_log_probs,
    )
    advantages = per_token(advantages, mask, log_probs.dtype)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, ratio))
    hard = soft_gate is None
    values = {
        'ratio': rho,
        'clip_ratio/low': (advantages < 0) & (rho < 1 - clip_low) & hard,
        'clip_ratio/high': (advantages > 0) & (rho > 1 + clip_high) & hard,
        'approx_kl': k3(log_probs - old_log_probs),
    }
    if dual_clip is not None:
        values['clip_ratio/dual'] = (advantages < 0) & (rho > dual_clip)
    values['clip_ratio'] = sum(v for name, v in values.items() if name.startswith('clip_ratio/'))
    if sampler_log_probs is not None:
        gap = old_log_probs - sampler_log_probs
        values['sampler_gap'] = jnp.abs(gap)
        values['sampler_kl'] = k3(gap)
    if importance is not None:
        weights = importance_weights(old_log_probs, sampler_log_probs, mask, importance)
        values['importance_weight'] = jnp.minimum(weights, importance_cap)
        values['importance_truncated'] = weights > importance_cap
        values |= {f'sampler_gap_above/{bound:g}': jnp.abs(gap) > bound for bound in GAPS}
    return {
        name: aggregate(value.astype(rho.dtype), mask, aggregation)
        for name, value in values.items()
    }


def policy_maxima(
    log_probs: TokenArray,
    old_log_probs: TokenArray,
    mask: TokenArray,
    *,
    ratio: Ratio = 'sequence',
    sampler_log_probs: TokenArray | None = None,
) -> dict[str, Float[Array, '']]:
    """Largest values of what `policy_statistics` averages; to be combined with maximum, not with a
    sum.

    Args:
      log_probs: [trajectories, tokens], in nats.
      old_log_probs: [trajectories, tokens], in nats.
      mask: [trajectories, tokens], nonzero on response tokens.
      ratio: 'sequence' or 'token'.
      sampler_log_probs: [trajectories, tokens], in nats; None leaves their maximum out.

    Returns:
      ratio_max, and sampler_gap_max (nats) with `sampler_log_probs`; 0 where the mask is empty.

    Raises:
      ValueError: shapes do not match, or a name is unknown.
    """
    check_choice('ratio', ratio, ('sequence', 'token'))
    mask, log_probs, old_log_probs, sampler_log_probs = masked(
        mask,
        log_probs=stop_gradient(log_probs),
        old_log_probs=stop_gradient(old_log_probs),
        sampler_log_probs=sampler_log_probs,
    )
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, ratio))
    maxima = {'ratio_max': jnp.max(jnp.where(mask, rho, 0), initial=0)}
    if sampler_log_probs is not None:
        maxima['sampler_gap_max'] = jnp.max(jnp.abs(old_log_probs - sampler_log_probs), initial=0)
    return maxima
