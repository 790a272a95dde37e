"""Group and batch advantages: golden values, failures left out, no spread, any order and grouping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensesearch_jax.training.advantages import (
    batch_gain,
    batch_normalize,
    frac_reward_zero_std,
    group_advantages,
)

REWARDS = np.array([1.5, 0.5, 0, 1, 0.5, 0.5, 0, 1.5], np.float32)
GROUPS = np.array([0, 0, 0, 1, 2, 2, 3, 3])
ALL = np.ones(8, bool)
GROUP_LAYER = np.array(
    [1.09108802, -0.2182176, -0.87287042, 0.99999905, 0, 0, -0.70710611, 0.70710611]
)
BATCH_LAYER = np.array(
    [1.38811798, -0.49315, -1.43378399, 1.25723733, -0.17960533, -0.17960533, np.nan, 0.83639587]
)


def test_group_layer_golden():
    np.testing.assert_allclose(group_advantages(REWARDS, GROUPS, ALL), GROUP_LAYER, atol=2e-7)


def test_group_layer_without_std_golden():
    expected = [0.83333333, -0.16666667, -0.66666667, 1, 0, 0, -0.75, 0.75]
    np.testing.assert_allclose(
        group_advantages(REWARDS, GROUPS, ALL, baseline='mean'), expected, atol=1e-7
    )


def test_leave_one_out_golden():
    """Each reward less the mean of the others': 1.5 − 0.25, 0.5 − 0.75, 0 − 1; alone, the reward."""
    expected = [1.25, -0.25, -1, 1, 0, 0, -1.5, 1.5]
    found = group_advantages(REWARDS, GROUPS, ALL, baseline='leave_one_out')
    np.testing.assert_allclose(found, expected, atol=1e-7)
    failed = group_advantages(REWARDS, GROUPS, np.arange(8) != 0, baseline='leave_one_out')
    np.testing.assert_allclose(failed[:3], [0, 0.5, -0.5], atol=1e-7)
    with pytest.raises(ValueError, match='baseline must be one of mean_std, mean, leave_one_out'):
        group_advantages(REWARDS, GROUPS, ALL, baseline='median')


def test_batch_layer_golden():
    result = np.asarray(batch_normalize(group_advantages(REWARDS, GROUPS, ALL), ALL))
    kept = np.arange(8) != 6
    np.testing.assert_allclose(result[kept], BATCH_LAYER[kept], atol=2e-6)


def test_a_failed_trajectory_is_in_no_statistic():
    valid = ALL.copy()
    valid[6] = False
    rewards = REWARDS.copy()
    rewards[6] = np.nan
    group = np.asarray(group_advantages(rewards, GROUPS, valid))
    np.testing.assert_allclose(group[:6], GROUP_LAYER[:6], atol=2e-7)
    assert group[6] == 0
    np.testing.assert_allclose(group[7], 1.5, rtol=2e-6)  # its partner is now a single sample
    batch = np.asarray(batch_normalize(np.where(valid, group, np.inf), valid))
    np.testing.assert_allclose(
        batch[valid], (group[valid] - group[valid].mean()) / group[valid].std(), atol=2e-6
    )
    assert batch[6] == 0


@pytest.mark.parametrize('reward', [0.1, 1 / 3, 1.7, -0.3, 1e6])
@pytest.mark.parametrize('size', [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(reward, size):
    rewards = jnp.full(size, reward)
    groups, valid = jnp.zeros(size, int), jnp.ones(size, bool)
    for divide in (True, False):
        assert not np.any(
            jax.jit(group_advantages, static_argnames='baseline')(
                rewards, groups, valid, baseline='mean_std' if divide else 'mean'
            )
        )
    assert not np.any(jax.jit(batch_normalize)(rewards, valid))


def test_nothing_valid():
    nothing = np.zeros(8, bool)
    assert not np.any(group_advantages(REWARDS, GROUPS, nothing))
    assert not np.any(batch_normalize(REWARDS, nothing))
    assert [float(x) for x in frac_reward_zero_std(REWARDS, GROUPS, nothing)] == [0, 0]
    assert float(batch_gain(REWARDS, nothing)) == 1
    assert group_advantages(np.zeros(0), np.zeros(0, int), np.zeros(0, bool)).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_agrees_with_numpy_and_ignores_order(data):
    size = 9  # one size: one compilation
    numbers = st.floats(-3, 3, width=32, allow_subnormal=False).map(lambda x: round(x, 2))
    rewards = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)), np.float32)
    groups = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size)))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    expected = np.zeros(size)
    for group in set(groups[valid]):
        rows = valid & (groups == group)
        r = rewards[rows].astype(np.float64)
        mean, std = (r.mean(), r.std(ddof=1)) if len(r) > 1 else (0.0, 1.0)
        expected[rows] = 0 if np.ptp(r) == 0 and len(r) > 1 else (r - mean) / (std + 1e-6)
    result = np.asarray(jax.jit(group_advantages)(rewards, groups, valid))
    np.testing.assert_allclose(result, expected, atol=1e-4)
    order = np.array(data.draw(st.permutations(range(size))))
    shuffled = jax.jit(group_advantages)(rewards[order], groups[order], valid[order])
    np.testing.assert_allclose(shuffled, result[order], atol=1e-5)


@pytest.mark.parametrize('spreading', [1, 2, 4])
def test_batch_layer_over_complete_groups_is_the_derived_gain(spreading):
    size, count = 8, 4
    rewards = np.zeros((count, size), np.float32)
    rewards[:spreading, :3] = 1.5
    groups = np.repeat(np.arange(count), size)
    valid = np.ones(count * size, bool)
    group = group_advantages(rewards.ravel(), groups, valid)
    share = frac_reward_zero_std(rewards.ravel(), groups, valid)
    assert [float(x) for x in share] == [count - spreading, count]
    gain = 1 / np.sqrt(spreading / count * (size - 1) / size)
    np.testing.assert_allclose(batch_gain(group, valid), gain, rtol=1e-5)
    np.testing.assert_allclose(batch_normalize(group, valid), group * gain, atol=1e-5)


def test_batch_layer_over_incomplete_groups_is_a_gain_and_recentres_single_members_alone():
    groups = np.repeat(np.arange(3), 8)
    rewards = np.where(np.arange(24) % 8 < 3, 1.5, 0.5).astype(np.float32)
    rewards[16:] = 1
    valid = np.ones(24, bool)
    valid[[2, 6, 7, 12, 20]] = False  # 5 and 7 members with spread, 7 without
    group = group_advantages(rewards, groups, valid)
    gain = 1 / np.sqrt((4 + 6) / (5 + 7 + 7))
    np.testing.assert_allclose(batch_normalize(group, valid), group * gain, atol=1e-5)
    valid[1:8] = False  # one member alone, of which the group layer gives the reward
    group = np.asarray(group_advantages(rewards, groups, valid))
    found = np.asarray(batch_normalize(group, valid))
    assert group[0] == pytest.approx(1.5, abs=1e-5) and np.all(found[16:][valid[16:]] < 0)


def test_frac_reward_zero_std_counts_only_valid_rows():
    assert [float(x) for x in frac_reward_zero_std(REWARDS, GROUPS, ALL)] == [2, 4]
    valid = ALL.copy()
    valid[7] = False
    assert [float(x) for x in frac_reward_zero_std(REWARDS, GROUPS, valid)] == [3, 4]


def test_dtype_is_at_least_float32():
    assert (
        group_advantages(jnp.array([1, 0]), jnp.array([0, 0]), jnp.array([1, 1])).dtype
        == jnp.float32
    )
    assert batch_normalize(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype == jnp.float32


def test_no_gradient_into_rewards():
    gradient = jax.grad(lambda r: group_advantages(r, GROUPS, ALL).sum())(jnp.asarray(REWARDS))
    assert not np.any(gradient)


def test_shapes_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match='group_ids must have'):
        group_advantages(REWARDS, GROUPS[:4], ALL)
    with pytest.raises(ValueError, match='rewards and valid must be vectors'):
        group_advantages(REWARDS.reshape(2, 4), GROUPS, ALL)
    with pytest.raises(ValueError, match='advantages and valid must be vectors'):
        batch_normalize(REWARDS, ALL[:3])


@pytest.mark.parametrize('size', [1e-3, 1.0, 1.5, 1e6])
def test_rounding_is_no_spread(size):
    """One group is flat but for its last digit, the others are flat: nobody did better than anybody
    else."""
    rewards = np.full(64, size, np.float32)
    rewards[3] = np.nextafter(rewards[3], np.float32(np.inf))
    groups, valid = np.repeat(np.arange(8), 8), np.ones(64, bool)
    advantages = group_advantages(rewards, groups, valid)
    assert not np.any(advantages) and not np.any(
        group_advantages(rewards, groups, valid, baseline='mean')
    )
    assert not np.any(batch_normalize(advantages, valid)) and not np.any(
        batch_normalize(rewards, valid)
    )
    assert float(batch_gain(advantages, valid)) == float(batch_gain(rewards, valid)) == 1
    assert [float(x) for x in frac_reward_zero_std(rewards, groups, valid)] == [8, 8]


def test_terms_that_cancel_leave_no_spread():
    rewards = np.array([0, 1 + 0.1 + 0.2 - 1.3, 0, 0.1 + 0.2 - 0.3])
    assert 0 < np.ptp(rewards) < 1e-15
    assert not np.any(group_advantages(rewards, np.zeros(4, int), np.ones(4, bool)))


def test_a_small_spread_is_one():
    """A thousandth of a point, the smallest price that a call may have, is no rounding."""
    rewards = np.array([1.5, 1.5, 1.499, 1.5], np.float32)
    advantages = group_advantages(rewards, np.zeros(4, int), np.ones(4, bool))
    np.testing.assert_allclose(advantages, [0.499, 0.499, -1.497, 0.499], atol=2e-3)
    assert [
        float(x) for x in frac_reward_zero_std(rewards, np.zeros(4, int), np.ones(4, bool))
    ] == [0, 1]


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_valid(value):
    valid = ALL.copy()
    valid[6] = False
    rewards = np.where(valid, REWARDS, value)
    expected = np.asarray(group_advantages(REWARDS, GROUPS, valid))
    assert np.array_equal(group_advantages(rewards, GROUPS, ALL), expected)
    assert np.array_equal(
        frac_reward_zero_std(rewards, GROUPS, ALL), frac_reward_zero_std(REWARDS, GROUPS, valid)
    )
    broken = np.where(valid, expected, value)
    assert np.array_equal(batch_normalize(broken, ALL), batch_normalize(expected, valid))
    assert float(batch_gain(broken, ALL)) == float(batch_gain(expected, valid))
