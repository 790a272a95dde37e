"""Evaluation and cold start on several processes or devices find what one process on one device
finds."""

import json

import pytest
import toy_runs

from sensesearch_jax.recipes.session import read_trajectories

EVALUATION = {
    'data.eval': toy_runs.pocket('test', search=2, perception=2, search_only=1),
    'evaluate.lanes': 2,
}
COLD_START = {
    'data.train': toy_runs.pocket('train', search=4, perception=2, search_only=1),
    'mine.samples': 2,
    'mine.answer_tokens': 4,
}


def found(path):
    """Trajectories by question, without what rounding and clocks move, and without paths."""
    by_question = {}
    for trajectory in read_trajectories(path):
        value = trajectory.to_json()
        for turn in value['turns']:
            (turn['observation'] or {}).pop('latency_s', None)
            del turn['log_probs']
        value['question'].pop('images')
        assert trajectory.question.id not in by_question
        by_question[trajectory.question.id] = value
    return by_question


@pytest.fixture(scope='module')
def evaluated(policy_folder, tmp_path_factory):
    """A function that evaluates in a folder of its name with further settings, in one process of
    four devices; and the folder `one` of such a run."""
    folder = tmp_path_factory.mktemp('evaluated')

    def run(name, **more):
        output = folder / f'{name}.txt'
        process = toy_runs.start(
            'evaluate',
            folder / name,
            policy_folder,
            EVALUATION | more,
            output,
            JAX_NUM_CPU_DEVICES='4',
        )
        toy_runs.finish(process, output)
        return folder / name

    run.one = run('one')
    return run


def assert_same_evaluation(one, other):
    ours, theirs = (found(folder / 'evaluation' / 'policy.jsonl') for folder in (one, other))
    assert len(ours) == 5 and ours == theirs
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in (one, other)]
    # and not, say, how long tools took
    for name in ('questions', 'pictures', 'counted', 'accuracy', 'turns'):
        assert (
            len({json.dumps(summary['runs']['policy']['overall'][name]) for summary in summaries})
            == 1
        )


def test_evaluation(evaluated, policy_folder, tmp_path):
    two, second = tmp_path / 'two', tmp_path / 'two-process-1'
    toy_runs.several(
        'evaluate', two, policy_folder, EVALUATION | {'mesh.fsdp': 4}, tmp_path / 'output.txt'
    )
    assert_same_evaluation(evaluated.one, two)
    own, all_found = (found(folder / 'evaluation' / 'policy.jsonl') for folder in (second, two))
    assert len(own) == 2 and own.items() <= all_found.items()
    assert not (second / 'summary.json').exists()


@pytest.mark.slow
def test_evaluation_on_a_mesh(evaluated):
    assert_same_evaluation(evaluated.one, evaluated('mesh', **{'mesh.fsdp': 4}))


@pytest.mark.slow
def test_cold_start(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'
    toy_runs.finish(
        toy_runs.start('cold_start', tmp_path / 'one', policy_folder, COLD_START, output), output
    )
    toy_runs.several(
        'cold_start', tmp_path / 'two', policy_folder, COLD_START | {'mesh.fsdp': 4}, output
    )
    one, two = (found(tmp_path / name / 'cold_start' / 'kept.jsonl') for name in ('one', 'two'))
    assert one and list(one.items()) == list(two.items())
    results = [
        json.loads((tmp_path / name / 'stages' / 'cold_start.json').read_text())['result']
        for name in ('one', 'two', 'two-process-1')
    ]
    assert results[0] == results[1] == results[2] and results[0]['kept'] == len(one)
    # Every picture of what is kept is in one folder, where SFT looks for it.
    pictures = {image['sha256'] for value in two.values() for image in value['images']}
    there = {
        path.name.partition('.')[0]
        for path in (tmp_path / 'two' / 'tools' / 'images').rglob('*')
        if path.is_file()
    }
    assert pictures and pictures <= there
