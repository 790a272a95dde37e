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


def test_evaluation(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'

    def run(name, **more):
        return toy_runs.finish(
            toy_runs.start(
                'evaluate',
                tmp_path / name,
                policy_folder,
                EVALUATION | more,
                output,
                JAX_NUM_CPU_DEVICES='4',
            ),
            output,
        )

    run('one')
    run('mesh', **{'mesh.fsdp': 4})
    toy_runs.several(
        'evaluate', tmp_path / 'two', policy_folder, EVALUATION | {'mesh.fsdp': 4}, output
    )
    one, mesh, two, second = (
        found(tmp_path / name / 'evaluation' / 'policy.jsonl')
        for name in ('one', 'mesh', 'two', 'two-process-1')
    )
    assert len(one) == 5 and one == mesh == two
    assert len(second) == 2 and second.items() <= two.items()
    summaries = [
        json.loads((tmp_path / name / 'summary.json').read_text())
        for name in ('one', 'mesh', 'two')
    ]
    # and not, say, how long tools took
    for name in ('questions', 'pictures', 'counted', 'accuracy', 'turns'):
        assert (
            len({json.dumps(summary['runs']['policy']['overall'][name]) for summary in summaries})
            == 1
        )
    assert not (tmp_path / 'two-process-1' / 'summary.json').exists()


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
