"""The summary of evaluation runs: rates, denominators, slices, paired differences, the table."""

import json

import pytest

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.observations import ObservationLimits, text_search_parts
from sensesearch_jax.agent.trajectory import Observation, Question, SampleState, Trajectory, Turn
from sensesearch_jax.evaluation.summary import format_table, summarise


def _turn(action, kind='', ok=True, latency=0.0):
    observation = Observation(('text',), ok, kind, latency_s=latency) if kind else None
    return Turn([1], [0.0], 'text', action, observation, [])


def _trajectory(
    number,
    right,
    category='search',
    difficulty='1',
    state=SampleState.OK,
    turns=(),
    well_formed=True,
    image=None,
):
    question = Question(
        f'q{number}',
        'What?',
        (image or f'{number // 2}.png',),
        ('yes',),
        category=category,
        difficulty=difficulty,
    )
    reward = {
        'total': right + 0.5 * well_formed,
        'accuracy': float(right),
        'format': float(well_formed),
    }
    turns = [*turns, _turn(Answer('yes'))]
    return Trajectory(question, 0, 0, turns, state, [], [], reward, 'yes').to_json()


def _run(outcomes, **options):
    return [_trajectory(i, right, **options) for i, right in enumerate(outcomes)]


def _summarise(runs, **options):
    return summarise(runs, resamples=200, **options)


def test_rates_and_counts():
    turns = [
        _turn(ImageCrop((0, 0, 0.5, 0.5)), 'image_crop', latency=0.5),
        _turn(ImageSearch(2), 'image_search', latency=1.0),
        _turn(TextSearch('a'), 'tool_error', ok=False, latency=1.5),
        _turn(FormatError('bad_json', 'No JSON.'), 'format_error', ok=False),
    ]
    run = [_trajectory(0, True, turns=turns), _trajectory(1, False, well_formed=False)]
    block = _summarise({'rl': run})['runs']['rl']['overall']
    assert (block['trajectories'], block['questions'], block['pictures'], block['counted']) == (
        2,
        2,
        1,
        2,
    )
    assert block['accuracy']['mean'] == 0.5 and block['format'] == 0.5
    assert block['turns'] == 3.0
    assert block['tool_calls'] == {'text_search': 0.5, 'image_search': 0.5, 'image_crop': 0.5}
    assert block['searches'] == 2 and block['search_success'] == 0.5
    assert block['tool_wait_s'] == 1.5


def test_a_search_that_finds_nothing_has_not_returned_results():
    nothing = Observation(text_search_parts((), ObservationLimits()), True, 'text_search')
    turns = [
        Turn([1], [0.0], 'text', TextSearch('a'), nothing, []),
        _turn(TextSearch('b'), 'text_search'),
    ]
    block = _summarise({'rl': [_trajectory(0, True, turns=turns)]})['runs']['rl']['overall']
    assert block['searches'] == 2 and block['search_success'] == 0.5


def test_only_what_the_policy_is_to_blame_for_counts():
    run = [
        _trajectory(0, True),
        _trajectory(1, False, state=SampleState.TRUNCATED),
        _trajectory(2, False, state=SampleState.INFRA_FAILED),
        _trajectory(3, False, state=SampleState.UNSCORABLE),
        _trajectory(4, False, state=SampleState.TOO_LONG),
    ]
    block = _summarise({'rl': run})['runs']['rl']['overall']
    assert block['counted'] == 2 and block['accuracy']['mean'] == 0.5
    assert block['states'] == dict.fromkeys(
        ('ok', 'truncated', 'infra_failed', 'unscorable', 'too_long'), 0.2
    )


def test_nothing_counted_is_none_not_zero():
    run = [_trajectory(i, False, state=SampleState.INFRA_FAILED) for i in range(3)]
    summary = _summarise({'rl': run, 'sft': _run([1, 0, 1])})
    block = summary['runs']['rl']['overall']
    assert block['accuracy'] is block['format'] is block['turns'] is block['tool_calls'] is None
    assert summary['differences'] == []
    assert '–' in format_table(summary)


def test_slices_by_category_and_difficulty():
    run = [
        _trajectory(0, True, category='perception', difficulty='1'),
        _trajectory(1, False, category='search', difficulty='1'),
        _trajectory(2, True, category='search', difficulty='3'),
    ]
    slices = _summarise({'rl': run})['runs']['rl']
    assert list(slices['by_category']) == ['search', 'perception']
    assert slices['by_difficulty']['1']['accuracy']['mean'] == 0.5
    assert slices['by_category_and_difficulty']['search']['3']['accuracy']['mean'] == 1.0


def test_interval_draws_pictures():
    """Sixteen questions about two pictures say as much as two: the interval spans everything."""
    one_picture = [_trajectory(i, i < 8, image='a' if i < 8 else 'b') for i in range(16)]
    many = [_trajectory(i, i < 8, image=str(i)) for i in range(16)]
    interval, narrow = (
        _summarise({'rl': run})['runs']['rl']['overall']['accuracy'] for run in (one_picture, many)
    )
    assert (interval['low'], interval['high']) == (0.0, 1.0)
    assert 0.1 < narrow['low'] < 0.5 < narrow['high'] < 0.9


def test_differences_are_paired_and_signed():
    sft = _run([0, 0, 1, 1, 0, 0])
    rl = [*_run([1, 0, 1, 1, 1])]  # the last question is missing
    without_crop = _run([0, 0, 0, 0, 0, 0])
    found = _summarise({'sft': sft, 'rl': rl, 'rl without crop': without_crop})['differences']
    assert [(d['a'], d['b'], d['category'], d['questions']) for d in found] == [
        ('rl', 'sft', 'search', 5),
        ('rl', 'rl without crop', 'search', 5),
    ]
    assert found[0]['mean'] == pytest.approx(0.4) and found[0]['low'] <= 0.4 <= found[0]['high']
    assert found[1]['mean'] == pytest.approx(0.8)


def test_overall_difference_only_over_several_kinds():
    run = [_trajectory(0, True), _trajectory(1, True, category='perception')]
    found = _summarise({'base': run, 'sft': run})['differences']
    assert [d['category'] for d in found] == ['overall', 'search', 'perception']


def test_is_json_and_repeatable():
    runs = {'base': _run([0, 1, 0, 0]), 'sft': _run([1, 1, 0, 1])}
    summary = _summarise(runs)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary == _summarise(runs)


def test_table_shows_the_numbers():
    runs = {
        'base': _run([0, 1, 0, 0]),
        'sft': _run([1, 1, 0, 1]),
        'rl without crop': _run([0, 0, 0, 1]),
    }
    table = format_table(_summarise(runs))
    lines = table.splitlines()
    assert lines[0].split()[:4] == ['run', 'category', 'n', 'accuracy']
    assert any(line.startswith('sft ') and ' 75.0 ' in line for line in lines)
    assert any(line.startswith('sft − base') and '+50.0' in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_refuses_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="'rl' has no trajectories"):
        _summarise({'rl': []})
    unscored = _trajectory(0, True)
    del unscored['reward']['accuracy']
    with pytest.raises(ValueError, match="'q0' is in state 'ok' but has no 'accuracy'"):
        _summarise({'rl': [unscored]})


def test_what_does_not_count_says_why():
    long = {
        **_trajectory(2, False, state=SampleState.TOO_LONG),
        'failure': 'A prompt of 436 tokens is too long.',
    }
    summary = _summarise(
        {
            'rl': [
                _trajectory(0, True),
                long,
                {**long, 'failure': 'A prompt of 500 tokens is too long.'},
            ]
        }
    )
    block = summary['runs']['rl']['overall']
    assert (
        block['counted'] == 1
        and block['accuracy']['mean'] == 1
        and block['states']['too_long'] == pytest.approx(2 / 3)
    )
    assert block['failures'] == {
        'too_long': {'count': 2, 'such_as': 'A prompt of 436 tokens is too long.'}
    }
    assert 'rl: 2 too_long, such as: A prompt of 436 tokens is too long.' in format_table(summary)
