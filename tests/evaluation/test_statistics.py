"""Bootstrap intervals: known cases, coverage, clusters, degenerate inputs."""

import numpy as np
import pytest

from sensesearch_jax.evaluation.statistics import mean_interval, paired_difference


def test_a_known_proportion():
    """60 of 200 right: the bootstrap agrees with the normal approximation, 0.3 +- 1.96 * sqrt(.21 /
    200)."""
    interval = mean_interval([1] * 60 + [0] * 140)
    assert interval.mean == 0.3 and interval.count == interval.clusters == 200
    np.testing.assert_allclose([interval.low, interval.high], [0.2365, 0.3635], atol=0.006)


def test_seed_and_order_do_not_change_more_than_noise():
    values = np.random.default_rng(0).normal(size=100)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    shuffled = mean_interval(values[::-1], seed=4)
    np.testing.assert_allclose(shuffled.low, mean_interval(values).low, atol=0.01)


@pytest.mark.parametrize('clustered', [False, True])
def test_coverage(clustered):
    """Close to 95 % of the intervals of repeated experiments hold the truth."""
    rng = np.random.default_rng(1)
    hits, trials = 0, 300
    for trial in range(trials):
        skill = rng.beta(2, 2, size=60)  # one per picture, mean 0.5
        values = (rng.random((60, 4)) < skill[:, None]).astype(float)
        if clustered:
            interval = mean_interval(
                values.ravel(), clusters=np.repeat(np.arange(60), 4), resamples=1000, seed=trial
            )
        else:
            interval = mean_interval(values[:, 0], resamples=1000, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.90 <= hits / trials <= 0.985


def test_copies_of_a_question_do_not_narrow_the_interval():
    values = np.array([1.0] * 20 + [0.0] * 30)
    once = mean_interval(values)
    copies = mean_interval(np.repeat(values, 4), clusters=np.repeat(np.arange(50), 4))
    assert copies.count == 200 and copies.clusters == 50
    np.testing.assert_allclose([copies.low, copies.high], [once.low, once.high], atol=0.02)
    naive = mean_interval(np.repeat(values, 4))
    assert naive.high - naive.low < 0.6 * (copies.high - copies.low)


def test_clusters_of_unequal_size_keep_their_weight():
    interval = mean_interval([1, 1, 1, 0], clusters=['a', 'a', 'a', 'b'])
    assert interval.mean == 0.75 and (interval.low, interval.high) == (0, 1)


def test_pairing_uses_what_both_share():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=200)
    first = hard + 0.1 * rng.normal(size=200)
    second = hard + 0.1 + 0.1 * rng.normal(size=200)
    paired = paired_difference(first, second)
    np.testing.assert_allclose(paired.mean, (second - first).mean())
    assert paired.low > 0
    same = paired_difference(first, first)
    assert same.low <= 0 <= same.high
    assert paired_difference(second, first).high < 0
    alone = mean_interval(first)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_degenerate_cases():
    nothing = mean_interval([])
    assert nothing.count == 0 and np.isnan([nothing.mean, nothing.low, nothing.high]).all()
    assert nothing.to_json()['mean'] is None
    single = mean_interval([1.0])
    assert single.mean == 1 and np.isnan(single.low)
    assert np.isnan(mean_interval([1, 0, 1], clusters=['a'] * 3).low)
    equal = mean_interval([0.1] * 7)
    np.testing.assert_allclose([equal.low, equal.high], [0.1, 0.1])
    assert equal.to_json()['count'] == 7


def test_many_different_values_are_drawn_in_pieces(monkeypatch):
    from sensesearch_jax.evaluation import statistics

    values = np.random.default_rng(3).normal(size=500)
    whole = mean_interval(values, resamples=400)
    monkeypatch.setattr(statistics, '_ENTRIES_AT_ONCE', 5000)
    assert mean_interval(values, resamples=400) == whole


@pytest.mark.parametrize(
    'call, sentence',
    [
        (lambda: mean_interval([1, float('nan')]), 'not finite'),
        (lambda: mean_interval([[1, 2]]), 'vector of scores'),
        (lambda: mean_interval([1, 2], clusters=['a']), 'one cluster per value'),
        (lambda: mean_interval([1, 2], level=1.0), 'level must lie'),
        (lambda: mean_interval([1, 2], resamples=0), 'resamples must be'),
        (lambda: paired_difference([1, 2], [1]), 'the same questions'),
    ],
)
def test_mistakes_are_refused_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
