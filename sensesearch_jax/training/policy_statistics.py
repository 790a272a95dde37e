"""Statistics of the policy loss: ratios, clips, and the gap between sampler and trainer."""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped

from sensesearch_jax.training.losses import (
    PolicyOptions,
    Ratio,
    SumWeight,
    TokenArray,
    aggregate,
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
    options: PolicyOptions = PolicyOptions(),
    sampler_log_probs: TokenArray | None = None,
) -> dict[str, SumWeight]:
    """Statistics of the policy loss, as (sum, weight) pairs that add up like the loss.

    Unlike in `policy_loss`, `sampler_log_probs` may be given without `importance`: the gap is worth
    watching even where nothing corrects for it.

    Args:
      log_probs: [trajectories, tokens], in nats.
      old_log_probs: [trajectories, tokens], in nats.
      advantages: [trajectories].
      mask: [trajectories, tokens], nonzero on response tokens.
      options: as for `policy_loss`; with a soft gate nothing is clipped.
      sampler_log_probs: [trajectories, tokens], in nats, or None.

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
    options.check()
    if options.importance is not None:
        options.check_importance(sampler_log_probs)
    aggregation = options.aggregation or options.ratio
    if aggregation == 'constant':
        aggregation = 'token'  # a mean is wanted, not a sum
    mask, log_probs, old_log_probs, sampler_log_probs = masked(
        mask,
        log_probs=stop_gradient(log_probs),
        old_log_probs=stop_gradient(old_log_probs),
        sampler_log_probs=sampler_log_probs,
    )
    advantages = per_token(advantages, mask, log_probs.dtype)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, options.ratio))
    hard = options.soft_gate is None
    values = {
        'ratio': rho,
        'clip_ratio/low': (advantages < 0) & (rho < 1 - options.clip_low) & hard,
        'clip_ratio/high': (advantages > 0) & (rho > 1 + options.clip_high) & hard,
        'approx_kl': k3(log_probs - old_log_probs),
    }
    if options.dual_clip is not None:
        values['clip_ratio/dual'] = (advantages < 0) & (rho > options.dual_clip)
    values['clip_ratio'] = sum(v for name, v in values.items() if name.startswith('clip_ratio/'))
    if sampler_log_probs is not None:
        gap = old_log_probs - sampler_log_probs
        values['sampler_gap'] = jnp.abs(gap)
        values['sampler_kl'] = k3(gap)
    if options.importance is not None:
        weights = importance_weights(old_log_probs, sampler_log_probs, mask, options.importance)
        values['importance_weight'] = jnp.minimum(weights, options.importance_cap)
        values['importance_truncated'] = weights > options.importance_cap
        values |= {f'sampler_gap_above/{bound:g}': jnp.abs(gap) > bound for bound in GAPS}
    return {
        name: aggregate(value.astype(rho.dtype), mask, aggregation)
        for name, value in values.items()
    }


def policy_maxima(
    log_probs: TokenArray, old_log_probs: TokenArray, mask: TokenArray, ratio: Ratio
) -> dict[str, Float[Array, '']]:
    """Largest values of what `policy_statistics` averages; to be combined with maximum, not with a
    sum.

    Args:
      log_probs: [trajectories, tokens], in nats.
      old_log_probs: [trajectories, tokens], in nats.
      mask: [trajectories, tokens], nonzero on response tokens.
      ratio: 'sequence' or 'token'.

    Returns:
      ratio_max; 0 where the mask is empty.

    Raises:
      ValueError: shapes do not match.
    """
    mask, log_probs, old_log_probs = masked(
        mask, log_probs=stop_gradient(log_probs), old_log_probs=stop_gradient(old_log_probs)
    )
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, ratio))
    return {'ratio_max': jnp.max(jnp.where(mask, rho, 0), initial=0)}
