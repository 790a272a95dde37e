"""Bootstrap intervals: known cases, coverage, clusters, degenerate inputs."""

import numpy as np
import pytest

from sensesearch_jax.evaluation.statistics import mean_interval, paired_difference, seeds_interval


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
    assert nothing.bounds()['mean'] is None
    single = mean_interval([1.0])
    assert single.mean == 1 and np.isnan(single.low)
    assert np.isnan(mean_interval([1, 0, 1], clusters=['a'] * 3).low)
    equal = mean_interval([0.1] * 7)
    np.testing.assert_allclose([equal.low, equal.high], [0.1, 0.1])
    assert equal.count == 7


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


def crossed(table):
    """Values, seeds and clusters of a table [seeds, questions]."""
    table = np.asarray(table, float)
    seed, cluster = np.indices(table.shape)
    return table.ravel(), {'seeds': seed.ravel(), 'clusters': cluster.ravel()}


def test_seeds_that_differ_by_themselves_are_drawn():
    """Two seeds, all wrong and all right: resamples give 0, 1/2 and 1 with chances 1/4, 1/2, 1/4."""
    values, names = crossed([[0] * 50, [1] * 50])
    ends = [
        (i.low, i.high) for lv in (0.95, 0.4) for i in [seeds_interval(values, level=lv, **names)]
    ]
    assert ends == [(0, 1), (0.5, 0.5)]


def test_questions_are_drawn_once_for_all_seeds():
    """Seeds that agree are no more evidence than one of them: the interval does not shrink."""
    table = [[1] * 60 + [0] * 140]
    one, ten = (seeds_interval(v, **n) for v, n in map(crossed, (table, table * 10)))
    alone = mean_interval(table[0])
    for found in (one, ten):
        assert found.mean == alone.mean and found.clusters == 200
        np.testing.assert_allclose([found.low, found.high], [alone.low, alone.high], atol=0.006)


def test_the_spread_of_additive_effects_is_that_of_seeds_and_of_questions():
    """var(seeds) / S + var(clusters) / C, as the docstring has it, in a normal approximation."""
    rng = np.random.default_rng(3)
    of_seeds, of_questions = rng.normal(scale=0.3, size=40), rng.normal(size=300)
    values, names = crossed(of_seeds[:, None] + of_questions)
    found = seeds_interval(values, resamples=20_000, **names)
    std = np.sqrt(of_seeds.var() / 40 + of_questions.var() / 300)
    np.testing.assert_allclose((found.high - found.low) / 2, 1.96 * std, rtol=0.03)


def test_questions_of_each_seed_alone_and_clusters_keep_their_weight():
    """Seeds that were asked other questions, and a picture with two of them."""
    found = seeds_interval([1, 0, 1], seeds=[0, 0, 1], clusters=['a', 'b', 'b'])
    assert found.mean == pytest.approx(2 / 3) and found.clusters == 2
    assert (found.low, found.high) == (0, 1)
    with pytest.raises(ValueError, match='3 values have 2 seeds and 3 clusters'):
        seeds_interval([1, 0, 1], seeds=[0, 1], clusters=[1, 2, 3])
    single = seeds_interval([1.0, 0.0], seeds=[0, 0], clusters=[1, 1])
    assert single.mean == 0.5 and np.isnan(single.low)
