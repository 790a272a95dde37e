"""Published objectives as options of the one loss, by their papers' formulas in float64; and their
wiring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_batches import ROWS
from small_learners import learner_of, policy_gradient, rl_config, targets_for, values_of

from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.losses import PolicyOptions, policy_loss

B, T = np.arange(8)[:, None], np.arange(6)[None]
LP = -1 - 0.5 * np.sin(1.7 * B + 0.9 * T)
OLD = LP - 0.4 * np.cos(0.8 * B - 1.3 * T)
MASK = T < np.array([6, 4, 5, 1, 6, 3, 0, 2])[:, None]
MASK[0, 2] = False
MASK[4, 1:3] = False
ADVANTAGES = np.array([1.1, -0.2, -0.9, 1.0, 0.0, 0.3, 0.7, -0.7])
LENGTHS = MASK.sum(1)
CLIP = {'clip_low': 0.2, 'clip_high': 0.28}


def objective(**changes):
    """That of a config's `rl`."""
    return make_objective(ConfigDict(rl_config() | {'clip_low': 0.2, 'clip_high': 0.28} | changes))


def value_and_gradient(options):
    """The mean loss and its gradient in float64."""
    with jax.enable_x64(True):

        def mean(log_probs):
            total, weight = policy_loss(log_probs, jnp.asarray(OLD), ADVANTAGES, MASK, options)
            return total / weight

        return jax.value_and_grad(mean)(jnp.asarray(LP))


def sapo(lp):
    """Eq. 5 of arXiv 2511.20347: (1/G) Σ_i (1/|y_i|) Σ_t f(r) A with f(x) = σ(τ (x − 1)) 4 / τ."""
    total = 0.0
    for i in range(8):
        tau = 1.0 if ADVANTAGES[i] > 0 else 1.05
        gates = [
            4 / tau / (1 + np.exp(-tau * (np.exp(lp[i, t] - OLD[i, t]) - 1)))
            for t in range(6)
            if MASK[i, t]
        ]
        total += ADVANTAGES[i] * np.mean(gates) if gates else 0.0
    return -total / (LENGTHS > 0).sum()


def sequence_losses(lp):
    """GSPO's loss of each trajectory."""
    s = np.exp(np.where(MASK, lp - OLD, 0).sum(1) / np.maximum(LENGTHS, 1))
    return -np.minimum(s * ADVANTAGES, np.clip(s, 0.8, 1.28) * ADVANTAGES) * (LENGTHS > 0)


def luspo(lp):
    """arXiv 2602.05261: GSPO with each sequence's loss scaled by its length."""
    return (sequence_losses(lp) * LENGTHS).sum() / (LENGTHS > 0).sum()


def constant_length(lp):
    """Dr. GRPO, arXiv 2503.20783: token losses of a trajectory over the length it could have, 6."""
    r = np.exp(lp - OLD)
    a = ADVANTAGES[:, None]
    losses = -np.minimum(r * a, np.clip(r, 0.8, 1.28) * a)
    return np.where(MASK, losses, 0).sum() / 6 / (LENGTHS > 0).sum()


@pytest.mark.parametrize(
    'formula, changes',
    [
        (sapo, {'algorithm': 'sapo'}),
        (luspo, {'algorithm': 'luspo'}),
        (
            constant_length,
            {
                'algorithm': 'grpo',
                'dual_clip': 0.0,
                'aggregation': 'constant',
                'constant_length': 6,
            },
        ),
    ],
)
def test_the_loss_is_that_of_the_paper(formula, changes):
    """The value, and where the loss is smooth the gradient, by differences."""
    value, gradient = value_and_gradient(objective(**changes))
    np.testing.assert_allclose(value, formula(LP), rtol=1e-12)
    assert not np.any(np.asarray(gradient)[~MASK])
    for i, t in zip(*np.nonzero(MASK), strict=True):
        step = np.zeros_like(LP)
        step[i, t] = 1e-6
        by_difference = (formula(LP + step) - formula(LP - step)) / 2e-6
        np.testing.assert_allclose(gradient[i, t], by_difference, atol=2e-8, err_msg=f'{i}, {t}')


def test_a_soft_gate_by_hand():
    """Ratios 1 and 2: 4 σ(0) = 2 and 4 σ(1) = 2.924234; 4 σ(0) / 1.05 and 4 σ(1.05) / 1.05."""
    lp, old = jnp.log(jnp.array([[1.0, 2.0]])), jnp.zeros((1, 2))
    options = PolicyOptions('token', soft_gate=(1.0, 1.05), aggregation='sequence')
    good, _ = policy_loss(lp, old, np.array([1.0]), np.ones((1, 2)), options)
    bad, _ = policy_loss(lp, old, np.array([-1.0]), np.ones((1, 2)), options)
    np.testing.assert_allclose([good, bad], [-2.4621172, 2.3633809], rtol=1e-6)


def test_on_policy_every_objective_has_the_plain_gradient_in_its_own_mean():
    """Slope 1 at ratio 1: what tells them apart is the mean alone."""
    weights = {
        'sapo': 1 / np.maximum(LENGTHS, 1),
        'gspo': 1 / np.maximum(LENGTHS, 1),
        'luspo': np.ones(8),
    }
    for name, of_rows in weights.items():
        options = objective(algorithm=name)
        gradient = jax.grad(
            lambda lp, o=options: policy_loss(lp, LP.astype(np.float32), ADVANTAGES, MASK, o)[0]
        )(jnp.asarray(LP, jnp.float32))
        expected = -(ADVANTAGES * of_rows)[:, None] * MASK
        np.testing.assert_allclose(gradient, expected, atol=1e-6, err_msg=name)


def test_importance_weights_reach_the_loss_with_the_trainer_s_own_old_policy():
    """min(w, cap) times the loss of the ratio to old log-probs, w from these to the sampler's."""
    of_token = Objective(importance='token', importance_cap=1.1, entropy_coefficient=0.01)
    learner = learner_of(objective=of_token)
    batch, targets = targets_for(learner, ROWS, 'gspo')
    own = (batch.response_mask & targets.in_loss[..., None])[:, :, 1:]
    lp, sampler = (
        np.asarray(learner.log_probs(batch), float),
        batch.log_probs[:, :, 1:].astype(float),
    )
    random = np.random.default_rng(0)
    old = np.where(own, lp + random.normal(0, 0.2, lp.shape), 0)
    a, lengths = targets.advantages[..., None], np.maximum(own.sum(-1, keepdims=True), 1)
    for given in (old, None):  # without, this is the first update: the ratio is 1
        before = lp if given is None else given
        s = np.exp(np.where(own, lp - before, 0).sum(-1, keepdims=True) / lengths)
        losses = np.maximum(-a * s, -a * np.clip(s, 0.8, 1.28))
        gap = np.where(own, before - sampler, 0)
        expected = np.where(own, losses * np.minimum(np.exp(gap), 1.1) / lengths, 0).sum()
        wide = None if given is None else given.astype(np.float32)
        with_old = PolicyTargets(targets.advantages, targets.in_loss, None, wide)
        _, metrics = policy_gradient(learner, batch, with_old)
        np.testing.assert_allclose(metrics['loss'][0], expected, rtol=1e-4)
        rows = own.any(-1).sum()
        assert metrics['importance_truncated'][1] == rows
        above = np.where(own, np.abs(gap) > 0.1, 0).sum(-1, keepdims=True) / lengths
        np.testing.assert_allclose(metrics['sampler_gap_above/0.1'][0], above.sum(), rtol=1e-3)


def test_the_entropy_bonus_raises_the_entropy_by_its_own_gradient():
    """A step of size 0.1 along β ∇H raises H by 0.1 β |∇H|², to first order."""
    beta = 0.01
    learner = learner_of(
        objective=Objective(importance='token', importance_cap=1.1, entropy_coefficient=beta)
    )
    batch, targets = targets_for(learner, ROWS, 'gspo')
    flat = PolicyTargets(np.zeros_like(targets.advantages), targets.in_loss)
    assert learner.teaches(flat)
    first = learner.rl_step([(batch, flat)])
    second = learner.rl_step([(batch, flat)])
    expected = 0.1 * first['grad_norm'] ** 2 / beta
    assert second['entropy'] - first['entropy'] == pytest.approx(expected, rel=0.05)
    assert expected > 1e-6 and values_of(learner.parameters)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'baseline': 'median'}, "rl.baseline 'median' is unknown"),
        ({'importance': 'row'}, "rl.importance 'row' is unknown"),
        ({'importance_cap': 0.0}, 'rl.importance_cap is 0.0; give more than 0'),
        ({'entropy_coefficient': -1.0}, 'rl.entropy_coefficient is -1.0; give 0 or more'),
        ({'aggregation': 'constant'}, "rl.constant_length is 0 and rl.aggregation 'constant'"),
        ({'constant_length': 9}, 'give a length above 0'),
        ({'aggregation': 'median'}, 'rl: aggregation must be one of'),
        ({'algorithm': 'sapo', 'soft_positive': 0.0}, 'rl: soft_gate holds temperatures above 0'),
    ],
)
def test_options_that_no_objective_has_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        objective(**changes)
