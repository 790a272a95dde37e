"""The numbers of a set: Pass@1, Avg@k, official metrics, slices, clusters, conduct."""

import json

import pytest
from evaluated import answered, empty, found, question

from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.evaluation.result_files import summarise_sets
from sensesearch_jax.evaluation.results import result_row
from sensesearch_jax.evaluation.set_summary import summarise_set


def rows(trajectories):
    return [result_row(t, 10, 2) for t in trajectories]


def summary(trajectories):
    return summarise_set(rows(trajectories))


def test_pass_at_1_is_of_the_first_samples_and_avg_at_k_of_all():
    said = {0: 'Paris', 1: 'Rome', 2: 'Paris', 3: 'Rome'}
    ts = [answered(question(i), said[i], member=0) for i in range(4)]
    ts += [answered(question(i), 'Paris' if i == 1 else 'Rome', member=1) for i in range(4)]
    got = summary(ts)
    assert (got['questions'], got['samples'], got['counted']) == (4, 2, 8)
    assert got['pass_at_1']['mean'] == 0.5 and got['avg_at_k']['mean'] == 3 / 8
    assert got['pass_at_k'] == 0.75
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_what_failed_is_counted_nowhere_but_in_the_finishes():
    ts = [
        answered(question(0)),
        answered(question(1), None, state=SampleState.INFRA_FAILED),
        answered(question(2), 'Rome'),
        answered(question(3), None, state=SampleState.TRUNCATED),
    ]
    got = summary(ts)
    assert got['counted'] == 3 and got['pass_at_1']['mean'] == pytest.approx(1 / 3)
    assert got['finishes']['tool_failed'] == got['finishes']['length'] == 0.25
    assert got['finishes']['answered'] == 0.5


def test_nothing_counted_is_none_not_zero():
    got = summary([answered(question(0), None, state=SampleState.INFRA_FAILED)])
    assert got['pass_at_1'] is got['avg_at_k'] is got['turns'] is got['pass_at_k'] is None
    assert got['metrics'] == {} and got['by_category'] == {}


def test_hr_bench_s_interval_draws_questions_not_rows():
    """Eight rows of two questions, one always right and one always wrong, say as much as two."""

    def row_of(i, group):
        return question(
            i, 'hr_bench_4k', truth={'group': group}, choices=('x', 'y'), answers=('A',)
        )

    of_two = [answered(row_of(i, 'ab'[i // 4]), 'A' if i < 4 else 'B', i < 4) for i in range(8)]
    alone = [answered(row_of(i, str(i)), 'A' if i < 4 else 'B', i < 4) for i in range(8)]
    wide, narrow = summary(of_two)['pass_at_1'], summary(alone)['pass_at_1']
    assert (wide['mean'], wide['low'], wide['high']) == (0.5, 0.0, 1.0)
    assert narrow['low'] > 0.1 and narrow['high'] < 0.9


def test_slices_have_accuracy_and_the_official_metric():
    ts = [
        answered(question(0, 'mmsearch', category='news'), 'in Paris', right=True),
        answered(question(1, 'mmsearch', category='news'), 'Rome'),
        answered(question(2, 'mmsearch', category='knowledge')),
    ]
    got = summary(ts)
    assert list(got['by_category']) == ['knowledge', 'news'] and got['by_difficulty'] == {}
    news = got['by_category']['news']
    assert news['questions'] == 2 and news['accuracy']['mean'] == 0.5
    assert news['official']['mean'] == pytest.approx(1 / 3)
    assert got['category_mean'] == 0.75 and got['pass_at_1']['mean'] == pytest.approx(2 / 3)


def test_judge_against_match_and_exact_match():
    ts = [
        answered(question(0), 'Paris'),  # a match, word for word
        answered(question(1), 'The answer is Paris', right=True),  # a match, not word for word
        answered(question(2), 'the capital of France', right=True),  # by the judge alone
        answered(question(3), 'Rome'),
    ]
    assert summary(ts)['judge'] == {
        'matched': 0.5,
        'judged_right': 0.25,
        'wrong': 0.25,
        'exact': 0.25,
    }


def test_searches_that_returned_something():
    ts = [
        answered(question(0), turns=[found(), empty(), found()]),
        answered(question(1), turns=[empty()]),
    ]
    got = summary(ts)
    assert got['searches']['text_search'] == {'asked': 4, 'found': 0.5}
    assert got['searches']['image_search'] == {'asked': 0, 'found': None}
    assert got['tool_calls']['text_search'] == 2.0


def test_a_set_with_the_right_option_always_first_shows():
    def of(i, gold):
        return question(i, 'vstar', choices=('red', 'blue'), answers=(gold,))

    first = [answered(of(i, 'A'), 'A', True) for i in range(4)]
    mixed = [answered(of(i, 'AB'[i % 2]), 'A', i % 2 == 0) for i in range(4)]
    assert summary(first)['gold_letters'] == {'A': 1.0}
    assert summary(mixed)['gold_letters'] == {'A': 0.5, 'B': 0.5}


def test_simple_vqa_has_its_grades_and_f_score():
    ts = [
        answered(question(0, 'simple_vqa')),
        answered(question(1, 'simple_vqa'), 'Rome'),
        answered(question(2, 'simple_vqa'), "I don't know"),
        answered(question(3, 'simple_vqa'), None, state=SampleState.TRUNCATED),
    ]
    parts = summary(ts)['official_parts']
    assert (parts['correct'], parts['incorrect'], parts['not_attempted']) == (0.25, 0.25, 0.5)
    assert parts['correct_given_attempted'] == 0.5 and parts['f_score'] == pytest.approx(1 / 3)


def test_infoseek_s_score_is_the_harmonic_mean_of_its_splits():
    """Two of four right of unseen questions, one of four of unseen entities: 2 / (2 + 4)."""

    def split(name, right):
        return [
            answered(
                question(f'{name}{i}', 'infoseek_val', category=f'val_unseen_{name}'),
                'Paris' if i < right else 'Rome',
            )
            for i in range(4)
        ]

    got = summary([*split('question', 2), *split('entity', 1)])
    assert got['official_parts']['harmonic_mean'] == pytest.approx(1 / 3)
    assert summary(split('question', 2))['official_parts'] == {}


def test_several_sets_stand_apart_in_the_paper_s_order():
    ts = [answered(question(0, name)) for name in ('vstar', 'my own', 'hr_mmsearch', 'mmsearch')]
    assert list(summarise_sets(rows(ts))) == ['mmsearch', 'hr_mmsearch', 'vstar', 'my own']


def test_a_set_of_open_questions_and_ones_with_options_has_the_metrics_of_both():
    options = question(1, 'mine', choices=('red', 'blue'), answers=('A',))
    got = summary([answered(question(0, 'mine')), answered(options, 'A', True)])
    assert {name: bounds['mean'] for name, bounds in got['metrics'].items()} == {
        'exact': 1,
        'f1': 1,
        'released_letter': 1,
    }
