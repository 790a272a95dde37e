"""Policy losses, KL, cross-entropy: golden values with gradients, masks, additivity, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensesearch_jax.training import losses
from sensesearch_jax.training import policy_statistics as statistics_of
from sensesearch_jax.training.advantages import batch_normalize, group_advantages
from sensesearch_jax.training.losses import PolicyOptions, cross_entropy, kl
from sensesearch_jax.training.policy_statistics import policy_maxima

B, T = np.arange(8)[:, None], np.arange(6)[None]
LP = -1 - 0.5 * np.sin(1.7 * B + 0.9 * T)
OLD = LP - 0.4 * np.cos(0.8 * B - 1.3 * T)
REF = LP + 0.3 * np.sin(2.1 * B + 0.4 * T)
SAMPLER = OLD + 0.2 * np.sin(3.3 * B + 1.1 * T)
MASK = T < np.array([6, 4, 5, 1, 6, 3, 0, 2])[:, None]
MASK[0, 2] = False
MASK[4, 1:3] = False
REWARDS = np.array([1.5, 0.5, 0, 1, 0.5, 0.5, 0, 1.5])
GROUPS = np.array([0, 0, 0, 1, 2, 2, 3, 3])
ALL = np.ones(8, bool)

CLIP = {'clip_low': 0.2, 'clip_high': 0.28}
POLICY_GOLDEN = {
    'grpo': (dict(ratio='token', dual_clip=3.0, **CLIP), False, -0.116564622, 0.363176166),
    'gspo_narrow': (
        dict(ratio='sequence', clip_low=3e-4, clip_high=4e-4),
        False,
        -0.2064176,
        0.138643814,
    ),
    'gspo': (dict(ratio='sequence', **CLIP), False, -0.241949871, 0.553977122),
    'bn_gspo': (dict(ratio='sequence', **CLIP), True, -0.175673821, 0.814275868),
    'gspo_token_weights': (
        dict(ratio='sequence', importance='token', importance_cap=1.1, **CLIP),
        False,
        -0.267977767,
        None,
    ),
    'gspo_sequence_weights': (
        dict(ratio='sequence', importance='sequence', importance_cap=1.1, **CLIP),
        False,
        -0.288205025,
        None,
    ),
}
KL_GOLDEN = 0.58048804


def policy_loss(*arrays, sampler_log_probs=None, **options):
    return losses.policy_loss(*arrays, PolicyOptions(**options), sampler_log_probs)


def policy_statistics(*arrays, sampler_log_probs=None, **options):
    given = PolicyOptions(**options), sampler_log_probs
    return statistics_of.policy_statistics(*arrays, *given)


def advantages(batch_layer: bool):
    result = group_advantages(REWARDS, GROUPS, ALL)
    return batch_normalize(result, ALL) if batch_layer else result


def loss_and_gradient(log_probs, old, adv, mask, **options):
    def mean(log_probs):
        total, weight = policy_loss(log_probs, old, adv, mask, **options)
        return total / weight

    return jax.jit(jax.value_and_grad(mean))(jnp.asarray(log_probs))


@pytest.mark.parametrize('x64', [False, True])
@pytest.mark.parametrize('name', POLICY_GOLDEN)
def test_policy_loss_golden(name, x64):
    options, batch_layer, expected, gradient_sum = POLICY_GOLDEN[name]
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        if 'importance' in options:
            options = options | {'sampler_log_probs': jnp.asarray(SAMPLER, dtype)}
        loss, gradient = loss_and_gradient(
            jnp.asarray(LP, dtype),
            jnp.asarray(OLD, dtype),
            advantages(batch_layer),
            MASK,
            **options,
        )
        assert loss.dtype == dtype
        tolerance = 2e-7 if x64 else 2e-6
        np.testing.assert_allclose(loss, expected, atol=tolerance)
        if gradient_sum is not None:
            np.testing.assert_allclose(np.abs(gradient).sum(), gradient_sum, atol=tolerance)
        assert not np.any(np.asarray(gradient)[~MASK])
        if name == 'gspo':
            np.testing.assert_allclose(np.asarray(gradient)[0, MASK[0]], -0.03654397, atol=2e-7)


def test_kl_golden():
    total, weight = jax.jit(kl)(LP, REF, MASK)
    np.testing.assert_allclose(total, KL_GOLDEN, atol=2e-6)
    assert weight == MASK.sum()


def test_kl_gradient():
    gradient = jax.jit(jax.grad(lambda lp: kl(lp, REF, MASK)[0]))(jnp.asarray(LP))
    d = np.where(MASK, REF - LP, 0)
    np.testing.assert_allclose(gradient, 1 - np.exp(d), atol=1e-6)


def test_k3_keeps_its_digits_near_zero_and_is_finite_far_away():
    near, _ = kl(np.full((1, 1), -1.0), np.full((1, 1), -1.0 + 2.0**-10), np.ones((1, 1)))
    np.testing.assert_allclose(near, 2.0**-21, rtol=1e-3)
    far = jax.grad(lambda lp: kl(lp, np.zeros((1, 1)), np.ones((1, 1)))[0])(jnp.full((1, 1), -1e4))
    assert np.all(np.isfinite(far))


def test_cross_entropy():
    total, weight = cross_entropy(LP, MASK)
    np.testing.assert_allclose([total, weight], [-LP[MASK].sum(), MASK.sum()], rtol=1e-6)


@pytest.mark.parametrize('junk', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('ratio', ['sequence', 'token'])
def test_masked_positions_may_hold_anything(ratio, junk):
    def spoiled(array):
        return jnp.asarray(np.where(MASK, array, junk), jnp.float32)

    adv = np.array(advantages(False))
    adv[6] = junk
    options = dict(ratio=ratio, importance='token', **CLIP)
    clean = loss_and_gradient(
        LP, OLD, advantages(False), MASK, sampler_log_probs=SAMPLER, **options
    )
    dirty = loss_and_gradient(
        spoiled(LP), spoiled(OLD), adv, MASK, sampler_log_probs=spoiled(SAMPLER), **options
    )
    np.testing.assert_allclose(dirty[0], clean[0], rtol=1e-6)
    np.testing.assert_allclose(dirty[1], clean[1], rtol=1e-6)

    @jax.jit
    def others(lp):
        kl_total = kl(lp, spoiled(REF), MASK)[0]
        statistics = policy_statistics(
            lp, spoiled(OLD), adv, MASK, sampler_log_probs=spoiled(SAMPLER), **options
        )
        return kl_total + cross_entropy(lp, MASK)[0], statistics

    gradient, statistics = jax.grad(others, has_aux=True)(spoiled(LP))
    assert np.all(np.isfinite(gradient))
    assert all(np.all(np.isfinite(pair)) for pair in statistics.values())


@pytest.mark.parametrize('ratio', ['sequence', 'token'])
def test_nothing_under_the_mask_is_a_zero_pair(ratio):
    empty = np.zeros_like(MASK)
    assert policy_loss(LP, OLD, advantages(False), empty, ratio=ratio) == (0, 0)
    assert kl(LP, REF, empty) == (0, 0)
    assert cross_entropy(LP, empty) == (0, 0)
    gradient = jax.grad(lambda lp: policy_loss(lp, OLD, advantages(False), empty, ratio=ratio)[0])(
        jnp.asarray(LP)
    )
    assert not np.any(gradient)
    assert policy_maxima(LP, OLD, empty, ratio) == {'ratio_max': 0}


@pytest.mark.parametrize('aggregation', ['sequence', 'token'])
@pytest.mark.parametrize('ratio', ['sequence', 'token'])
def test_micro_batches_add_up(ratio, aggregation):
    options = dict(ratio=ratio, aggregation=aggregation)
    functions = {'loss': policy_loss, 'statistics': policy_statistics}

    @jax.jit
    def whole_and_parts(lp, adv, mask):
        result = {}
        for name, function in functions.items():
            whole = function(lp, OLD, adv, mask, **options)
            parts = [
                function(lp[r], OLD[r], adv[r], mask[r], **options)
                for r in (slice(0, 3), slice(3, 8))
            ]
            result[name] = whole, jax.tree.map(jnp.add, *parts)
        return result

    gradients = jax.jit(
        jax.jacrev(lambda *args: [pair[0] for pair in whole_and_parts(*args)['loss']])
    )

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.floats(0, 1))
    def check(seed, density):
        rng = np.random.default_rng(seed)
        mask = rng.random(LP.shape) < density
        adv = rng.normal(size=8).astype(np.float32)
        lp = jnp.asarray(OLD + 0.5 * rng.normal(size=LP.shape), jnp.float32)
        for whole, parts in whole_and_parts(lp, adv, mask).values():
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), whole, parts
            )
        np.testing.assert_allclose(*gradients(lp, adv, mask), rtol=1e-5, atol=1e-5)

    check()


def test_vmap_equals_separate_calls():
    lps = np.stack([LP, LP - 0.1])
    adv = advantages(False)
    single = jax.jit(lambda lp: policy_loss(lp, OLD, adv, MASK))
    together = jax.jit(jax.vmap(single))(lps)
    for i in range(2):
        alone = single(lps[i])
        np.testing.assert_allclose([x[i] for x in together], alone, rtol=1e-6)


@pytest.mark.parametrize('ratio', ['sequence', 'token'])
def test_on_policy_gradient_is_the_plain_policy_gradient(ratio):
    adv = np.asarray(advantages(False))
    _, gradient = loss_and_gradient(LP, LP, adv, MASK, ratio=ratio)
    lengths = MASK.sum(1, keepdims=True)
    if ratio == 'sequence':
        expected = -adv[:, None] * MASK / np.maximum(lengths, 1) / (lengths > 0).sum()
    else:
        expected = -adv[:, None] * MASK / MASK.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_sequence_ratio_is_the_gradient_of_the_geometric_mean():
    """Inside the clip range the straight-through form has the value and the gradient of A s_i."""
    adv = np.asarray(advantages(False))

    def direct(lp):
        mean = jnp.where(MASK, lp - OLD, 0).sum(1) / np.maximum(MASK.sum(1), 1)
        return -(adv * jnp.exp(mean) * MASK.any(1)).sum()

    lp = jnp.asarray(LP)
    wide = dict(clip_low=1.0, clip_high=1e9)
    value, gradient = jax.value_and_grad(lambda x: policy_loss(x, OLD, adv, MASK, **wide)[0])(lp)
    expected, expected_gradient = jax.value_and_grad(direct)(lp)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_log_ratios_are_capped():
    one = np.ones((1, 1))
    bad = np.array([-1.0])
    sequence, _ = policy_loss(0 * one, -50 * one, bad, one, ratio='sequence')
    np.testing.assert_allclose(sequence, np.exp(10), rtol=1e-5)
    token, _ = policy_loss(0 * one, -50 * one, bad, one, ratio='token')
    np.testing.assert_allclose(token, np.exp(20), rtol=1e-5)
    dual, _ = policy_loss(0 * one, -50 * one, bad, one, ratio='token', dual_clip=3.0)
    np.testing.assert_allclose(dual, 3)


def test_no_gradient_into_anything_but_the_log_probs():
    def total(old, adv, sampler):
        return policy_loss(LP, old, adv, MASK, importance='token', sampler_log_probs=sampler)[0]

    for gradient in jax.grad(total, argnums=(0, 1, 2))(
        *map(jnp.asarray, (OLD, advantages(False), SAMPLER))
    ):
        assert not np.any(gradient)
    assert not np.any(jax.grad(lambda ref: kl(LP, ref, MASK)[0])(jnp.asarray(REF)))


def test_half_precision_inputs_are_summed_in_float32():
    total, weight = policy_loss(
        jnp.asarray(LP, jnp.bfloat16), jnp.asarray(OLD, jnp.bfloat16), advantages(False), MASK
    )
    assert total.dtype == weight.dtype == jnp.float32


def test_statistics_count_where_the_clips_bind():
    rho = np.exp(np.where(MASK, LP - OLD, 0))
    adv = np.asarray(advantages(False))[:, None]
    statistics = policy_statistics(
        LP,
        OLD,
        adv[:, 0],
        MASK,
        ratio='token',
        dual_clip=1.3,
        sampler_log_probs=SAMPLER,
        importance='token',
        importance_cap=1.1,
        **CLIP,
    )
    weights = np.exp(OLD - SAMPLER)
    expected = {
        'ratio': rho,
        'clip_ratio/low': (adv < 0) & (rho < 0.8),
        'clip_ratio/high': (adv > 0) & (rho > 1.28),
        'clip_ratio/dual': (adv < 0) & (rho > 1.3),
        'clip_ratio': ((adv < 0) & ((rho < 0.8) | (rho > 1.3))) | ((adv > 0) & (rho > 1.28)),
        'approx_kl': rho - 1 - np.log(rho),
        'sampler_gap': np.abs(OLD - SAMPLER),
        'sampler_kl': weights - 1 - np.log(weights),
        'importance_weight': np.minimum(weights, 1.1),
        'importance_truncated': weights > 1.1,
        **{
            f'sampler_gap_above/{g}': np.abs(OLD - SAMPLER) > float(g) for g in ('0.01', '0.1', '1')
        },
    }
    assert set(statistics) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(
            statistics[name],
            [np.where(MASK, values, 0).sum(), MASK.sum()],
            rtol=1e-5,
            atol=1e-5,
            err_msg=name,
        )
    assert (
        statistics['clip_ratio/low'][0] > 0
        and statistics['clip_ratio/high'][0] > 0
        and statistics['clip_ratio/dual'][0] > 0
    )
    maxima = policy_maxima(LP, OLD, MASK, 'token')
    np.testing.assert_allclose(maxima['ratio_max'], rho[MASK].max(), rtol=1e-6)


def test_statistics_watch_the_sampler_without_correcting_for_it():
    statistics = policy_statistics(LP, OLD, advantages(False), MASK, sampler_log_probs=SAMPLER)
    assert statistics['sampler_gap'][1] == MASK.any(1).sum()  # weighed like the loss
    assert 'importance_weight' not in statistics


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(ratio='word'), 'ratio must be one of'),
        (dict(aggregation='mean'), 'aggregation must be one of'),
        (dict(clip_low=-0.1), 'clip_low must lie'),
        (dict(clip_low=1.5), 'clip_low must lie'),
        (dict(clip_high=-1), 'clip_high must be'),
        (dict(dual_clip=3.0), "use it with ratio='token'"),
        (dict(ratio='token', dual_clip=0.9), 'must exceed 1'),
        (dict(soft_gate=(1.0, 1.0)), "use it with ratio='token' and without"),
        (dict(ratio='token', soft_gate=(1.0, 1.0), dual_clip=3.0), 'without dual_clip'),
        (dict(ratio='token', soft_gate=(0.0, 1.0)), 'temperatures above 0'),
        (dict(aggregation='constant', constant_length=0), 'constant_length must be above 0'),
        (dict(importance='token'), 'needs sampler_log_probs'),
        (dict(importance='row', sampler_log_probs=SAMPLER), 'importance must be one of'),
        (dict(sampler_log_probs=SAMPLER), 'would be ignored'),
        (
            dict(importance='token', sampler_log_probs=SAMPLER, importance_cap=0),
            'importance_cap must be',
        ),
        (
            dict(importance='token', sampler_log_probs=SAMPLER[:2]),
            "sampler_log_probs must have the mask's shape",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy_loss(LP, OLD, REWARDS, MASK, **options)


def test_shapes_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="one entry for each of the mask's 8 trajectories"):
        policy_loss(LP, OLD, REWARDS[:, None], MASK)
    with pytest.raises(ValueError, match="log_probs must have the mask's shape"):
        kl(LP[:4], REF, MASK)
    with pytest.raises(ValueError, match='mask must be'):
        cross_entropy(LP[0], MASK[0])


def test_limits_may_be_traced():
    scheduled = jax.jit(
        lambda low, high: policy_loss(LP, OLD, REWARDS, MASK, clip_low=low, clip_high=high)
    )
    np.testing.assert_allclose(scheduled(0.2, 0.28), policy_loss(LP, OLD, REWARDS, MASK), rtol=1e-6)
