"""Advantages: how much better a trajectory did than its group, and the normalisation over the
batch.

The two layers of BN-GSPO (SenseNova-MARS, arXiv 2512.24330). The group layer is GRPO's
(DeepSeekMath, arXiv 2402.03300); the batch layer rescales what it gives over all trajectories of
the batch.

Trajectories that are not valid (the infrastructure failed, nobody could score them) stay out of
both layers: they neither shift a mean nor widen a spread, and their own advantage is 0. A value
that is not finite is not valid, whatever the caller says.

Equal rewards that were summed in another order differ in their last digits, and dividing by a std
of that size would make advantages of order 1 of them. So a spread below ROUNDING times the largest
value counts as none.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

Baseline = Literal['mean_std', 'mean', 'leave_one_out']
BASELINES = get_args(Baseline)
GROUP_EPSILON = 1e-6
BATCH_EPSILON = 1e-9
# in units of the number type's precision: more than the sum of a reward's terms can be off by
ROUNDING = 16


def group_advantages(
    rewards: Shaped[Array, ' trajectories'],
    group_ids: Int[Array, ' trajectories'],
    valid: Shaped[Array, ' trajectories'],
    *,
    baseline: Baseline = 'mean_std',
) -> Float[Array, ' trajectories']:
    r"""Advantage of every trajectory within its group (GRPO, arXiv 2402.03300).

    .. math:: \bar A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r) + 10^{-6}}

    with mean and std (one degree of freedom less, "ddof 1") over the *valid* trajectories of i's
    group. A group whose rewards are equal but for rounding gives exactly 0. A group with a single
    valid trajectory has no statistics: mean 0 and std 1 stand in, so it gives its reward.

    ``baseline='mean'`` leaves the division out: the estimator of Dr. GRPO (arXiv 2503.20783).
    ``baseline='leave_one_out'`` compares with the mean of the other members, which does not depend
    on the trajectory itself, so that the gradient is unbiased (RLOO, arXiv 2402.14740; Kool et al.,
    "Buy 4 REINFORCE samples, get a baseline for free!", 2019):

    .. math:: A_i = r_i - \frac{1}{n - 1} \sum_{j \ne i} r_j = \frac{n}{n - 1} (r_i -
      \mathrm{mean}(r))

    Args:
      rewards: [trajectories], of order 1; whatever an invalid row holds (NaN too) is ignored.
      group_ids: [trajectories] integers, equal for trajectories of one question; any values, in any
          order.
      valid: [trajectories], nonzero for trajectories that count.
      baseline: 'mean_std', 'mean' or 'leave_one_out'.

    Returns:
      [trajectories] advantages in at least float32, 0 on invalid rows. No gradient flows into the
      rewards.

    Raises:
      ValueError: the three arrays are not vectors of one length, or there is no such baseline.
    """
    if baseline not in BASELINES:
        raise ValueError(f'baseline must be one of {", ".join(BASELINES)}, got {baseline!r}.')
    rewards, valid = _vectors('rewards', rewards, valid)
    group_ids = jnp.asarray(group_ids)
    if group_ids.shape != rewards.shape:
        raise ValueError(
            f"group_ids must have the rewards' shape {rewards.shape}, got {group_ids.shape}."
        )
    members = (group_ids[:, None] == group_ids[None, :]) & valid[None, :]
    # Distances from a member, not from the mean, which rounds.
    smallest = _smallest(rewards, members)
    offset = jnp.where(members, rewards[None, :] - smallest[:, None], 0)
    count = jnp.sum(members, axis=1)
    mean = jnp.sum(offset, axis=1) / jnp.maximum(count, 1)
    deviation = jnp.where(members, offset - mean[:, None], 0)
    std = jnp.sqrt(jnp.sum(deviation**2, axis=1) / jnp.maximum(count - 1, 1))
    single = count == 1
    advantages = jnp.where(_differ(rewards, members), rewards - smallest - mean, 0)
    advantages = jnp.where(single, rewards, advantages)
    if baseline == 'mean_std':
        advantages = advantages / (jnp.where(single, 1, std) + GROUP_EPSILON)
    elif baseline == 'leave_one_out':
        advantages = advantages * jnp.where(single, 1, count / jnp.maximum(count - 1, 1))
    return jnp.where(valid, advantages, 0)


def batch_normalize(
    advantages: Shaped[Array, ' trajectories'], valid: Shaped[Array, ' trajectories']
) -> Float[Array, ' trajectories']:
    r"""The batch layer of BN-GSPO (arXiv 2512.24330): zero mean and unit spread over the batch.

    .. math:: \tilde A_i = \frac{\bar A_i - \mu}{\sigma + 10^{-9}}

    with mu and sigma (ddof 0) over the valid trajectories. The caller chooses the scope by what it
    passes: the whole rollout batch or one minibatch of it. Advantages that are equal but for
    rounding give exactly 0.

    With complete groups of size G this is only a gain, 1 / sqrt(f (G - 1) / G) for a share f of
    groups whose rewards differ (see `frac_reward_zero_std` and `batch_gain`); with incomplete ones too, of n valid
    members: 1 / sqrt(sum of n - 1 over those with spread / sum of n over all). A group with a single valid member
    makes it recentre as well.

    Args:
      advantages: [trajectories], as `group_advantages` gives them.
      valid: [trajectories], nonzero for trajectories that count.

    Returns:
      [trajectories] advantages in at least float32, 0 on invalid rows.

    Raises:
      ValueError: the two arrays are not vectors of one length.
    """
    advantages, valid = _vectors('advantages', advantages, valid)
    offset, mean, sigma = _batch_moments(advantages, valid)
    return jnp.where(valid & (sigma > 0), (offset - mean) / (sigma + BATCH_EPSILON), 0)


def batch_gain(
    advantages: Shaped[Array, ' trajectories'], valid: Shaped[Array, ' trajectories']
) -> Float[Array, '']:
    """The factor 1 / (sigma + 1e-9) by which `batch_normalize` stretches; 1 if there is no spread.

    Worth logging: as fewer groups have spread it grows, and with it the effective learning rate.

    Args:
      advantages: [trajectories], what goes into `batch_normalize`.
      valid: [trajectories], nonzero for trajectories that count.

    Raises:
      ValueError: the two arrays are not vectors of one length.
    """
    advantages, valid = _vectors('advantages', advantages, valid)
    _, _, sigma = _batch_moments(advantages, valid)
    return jnp.where(sigma > 0, 1 / (sigma + BATCH_EPSILON), 1)


def frac_reward_zero_std(
    rewards: Shaped[Array, ' trajectories'],
    group_ids: Int[Array, ' trajectories'],
    valid: Shaped[Array, ' trajectories'],
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Share of groups whose valid rewards are all equal, as a (sum, weight) pair.

    Such a group has no advantages and teaches nothing; the share is 1 - f of `batch_normalize`.
    Groups without a valid trajectory are not counted.

    Args:
      rewards: [trajectories], as for `group_advantages`.
      group_ids: [trajectories], as for `group_advantages`.
      valid: [trajectories], nonzero for trajectories that count.

    Returns:
      (groups of equal rewards, groups); pairs of disjoint sets of groups add up.

    Raises:
      ValueError: rewards and valid are not vectors of one length.
    """
    rewards, valid = _vectors('rewards', rewards, valid)
    group_ids = jnp.asarray(group_ids)
    members = (group_ids[:, None] == group_ids[None, :]) & valid[None, :]
    equal = ~_differ(rewards, members)
    # A group is counted at its first valid member.
    first = valid & (jnp.argmax(members, axis=1) == jnp.arange(rewards.shape[0]))
    return jnp.sum(first & equal, dtype=rewards.dtype), jnp.sum(first, dtype=rewards.dtype)


def _vectors(name: str, values: Array, valid: Array) -> tuple[Array, Array]:
    """Values in at least float32 with 0 on invalid rows, and `valid` as booleans; refuses other
    shapes.

    A value that is not finite makes its row invalid.
    """
    values, valid = jnp.asarray(values), jnp.asarray(valid)
    if values.ndim != 1 or values.shape != valid.shape:
        raise ValueError(
            f'{name} and valid must be vectors over trajectories of one length, '
            f'got shapes {values.shape} and {valid.shape}.'
        )
    values = jax.lax.stop_gradient(values.astype(jnp.promote_types(values.dtype, jnp.float32)))
    valid = valid.astype(bool) & jnp.isfinite(values)
    return jnp.where(valid, values, 0), valid


def _smallest(rewards: Array, members: Array) -> Array:
    """Smallest reward among each row's members; 0 for a row that has none."""
    smallest = jnp.min(jnp.where(members, rewards[None, :], jnp.inf), axis=1, initial=jnp.inf)
    return jnp.where(jnp.any(members, axis=1), smallest, 0)


def _differ(values: Array, members: Array) -> Array:
    """Whether the values of each row's members differ by more than rounding."""

    def at_most(x):
        return jnp.max(jnp.where(members, x[None, :], -jnp.inf), axis=1, initial=-jnp.inf)

    # The floor: terms of order 1 that cancel leave digits of theirs where nothing is left.
    size = jnp.maximum(at_most(jnp.abs(values)), GROUP_EPSILON)
    return (
        at_most(values) - _smallest(values, members) > ROUNDING * jnp.finfo(values.dtype).eps * size
    )


def _batch_moments(advantages: Array, valid: Array) -> tuple[Array, Array, Array]:
    """Distances from the smallest valid advantage, their mean and spread (ddof 0)."""
    count = jnp.maximum(jnp.sum(valid), 1)
    offset = jnp.where(valid, advantages - _smallest(advantages, valid[None, :])[0], 0)
    mean = jnp.sum(offset) / count
    sigma = jnp.sqrt(jnp.sum(jnp.where(valid, (offset - mean) ** 2, 0)) / count)
    return offset, mean, jnp.where(_differ(advantages, valid[None, :])[0], sigma, 0)
