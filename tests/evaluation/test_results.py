"""Lines of results.jsonl: scores by every rule of the set, and how the trajectory ended."""

import json

import pytest
from evaluated import PICTURE, answered, empty, found, question, turn

from sensesearch_jax.agent.actions import FormatError, ImageCrop, ImageSearch
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.evaluation.metrics.table import METRICS, OFFICIAL
from sensesearch_jax.evaluation.results import result_row

BAD = turn(FormatError('no_action', 'No action.'), 'No action.', ok=False)


def row(trajectory, max_turns=10, max_malformed=2):
    return result_row(trajectory, max_turns, max_malformed)


def test_an_answer_with_its_calls_and_searches():
    turns = [found(), empty(), turn(ImageSearch(1), '1. Paris'), turn(ImageCrop((0, 0, 1, 1)), 'x')]
    line = row(answered(question(3, category='sports', difficulty='hard'), turns=turns))
    assert (line['set'], line['id'], line['sample']) == ('hr_mmsearch', 'q3', 0)
    assert (line['category'], line['difficulty']) == ('sports', 'hard')
    assert line['tool_calls'] == {'text_search': 2, 'image_search': 1, 'image_crop': 1}
    assert line['searches']['text_search'] == {'asked': 2, 'found': 1}
    assert line['searches']['image_search'] == {'asked': 1, 'found': 1}
    assert (line['turns'], line['tokens'], line['tool_wait_s']) == (5, 15, 0.5)
    assert line['accuracy'] == 1 and line['matched'] and line['metrics'] == {'exact': 1, 'f1': 1}
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_images_that_a_search_put_into_the_prompt_are_counted():
    trajectory = answered(question(1))
    assert row(trajectory)['retrieved'] == 0
    trajectory.images += [PICTURE, PICTURE]
    assert row(trajectory)['retrieved'] == 2
    crop = turn(ImageCrop((0, 0, 1, 1)), 'Image 2:', PICTURE)
    looked = answered(question(1), turns=[crop])
    looked.images.append(PICTURE)
    assert row(looked)['retrieved'] == 0


def test_right_by_the_judge_alone_is_no_match():
    line = row(answered(question(1), 'the capital of France', right=True))
    assert line['accuracy'] == 1 and not line['matched'] and line['metrics']['exact'] == 0


@pytest.mark.parametrize(
    'source, fields, said, scores',
    [
        ('mmsearch', {}, 'It is Paris', {'mmsearch_f1': 0.5, 'exact': 0, 'f1': 0.5}),
        ('infoseek', {}, 'paris.', {'infoseek': 1, 'exact': 1, 'f1': 1}),
        (
            'infoseek_val',
            {'truth': {'question_type': 'Numerical', 'range': [90, 110]}, 'answers': ('100',)},
            'about 95 m',
            {'infoseek': 1, 'exact': 0, 'f1': 0},
        ),
        (
            'infoseek_val',
            {'truth': {'question_type': 'Time'}, 'answers': ('1954', '1955')},
            '1955',
            {'infoseek': 1, 'exact': 1, 'f1': 1},
        ),
        (
            'vstar',
            {'choices': ('red', 'blue'), 'answers': ('B',)},
            'The answer is blue',
            {'vstar': 1, 'released_letter': 0},
        ),
        (
            'hr_bench_4k',
            {'choices': ('red', 'blue'), 'answers': ('blue',)},
            '(B)',
            {'hr_bench': 1, 'released_letter': 1},
        ),
        (
            'mme_realworld',
            {'choices': ('red', 'blue', 'x', 'y', 'none'), 'answers': ('E',)},
            'E',
            {'mme_realworld': 1, 'released_letter': 0},
        ),
        ('simple_vqa', {}, 'Rome', {'simple_vqa': 0, 'exact': 0, 'f1': 0}),
        ('a set of my own', {}, 'Paris', {'exact': 1, 'f1': 1}),
    ],
)
def test_each_set_has_its_own_metric_beside_the_general_ones(source, fields, said, scores):
    assert row(answered(question(1, source, **fields), said))['metrics'] == scores


def test_no_answer_scores_nothing_by_any_rule():
    """MME-RealWorld's script would read an A in an answer without a word."""
    of = question(1, 'mme_realworld', choices=('red', 'blue'), answers=('A',))
    line = row(answered(of, None, state=SampleState.TRUNCATED))
    assert line['answer'] is None and set(line['metrics'].values()) == {0.0}


@pytest.mark.parametrize(
    'state, turns, finish, counted',
    [
        (SampleState.OK, [found()], 'answered', True),
        (SampleState.TRUNCATED, [found()] * 10, 'turns', True),
        (SampleState.TRUNCATED, [found(), BAD, BAD], 'malformed', True),
        (SampleState.TRUNCATED, [BAD, found(), BAD], 'length', True),
        (SampleState.TRUNCATED, [], 'length', True),
        (SampleState.INFRA_FAILED, [], 'tool_failed', False),
        (SampleState.UNSCORABLE, [found()], 'judge_failed', False),
        (SampleState.TOO_LONG, [], 'too_long', False),
    ],
)
def test_why_a_trajectory_ended(state, turns, finish, counted):
    said = 'Paris' if state is SampleState.OK else None
    line = row(answered(question(1), said, turns=turns, state=state))
    assert (line['finish'], line['counted']) == (finish, counted)


def test_option_orders_of_one_question_are_one_cluster():
    orders = [question(i, 'hr_bench_4k', truth={'group': 'g7', 'cycle': str(i)}) for i in range(4)]
    assert len({tuple(row(answered(q))['cluster']) for q in orders}) == 1
    alone = [question(i, 'hr_bench_4k', images=()) for i in range(4)]
    assert len({tuple(row(answered(q))['cluster']) for q in alone}) == 4


def test_official_metrics_exist():
    assert set(OFFICIAL.values()) <= set(METRICS)
