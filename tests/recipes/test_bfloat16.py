"""Whole runs in bfloat16, through the command line, past a tool's response."""

import math

import pytest
import toy_runs

from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.runtime.metrics import read_metrics

RL = {
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'rl.steps': 2,
    'rl.questions_per_step': 2,
    'rl.micro_batch': 1,
    'rl.dtype': 'bfloat16',
}


def went_on_after_a_tool(trajectory):
    return any(
        turn.observation is not None and turn.observation.ok for turn in trajectory.turns[:-1]
    )


@pytest.mark.slow  # test_7b_configs.py samples and trains in bfloat16 too
def test_rl(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'
    toy_runs.finish(toy_runs.start('rl', tmp_path / 'run', policy_folder, RL, output), output)
    trajectories = [
        t
        for step in range(2)
        for t in read_trajectories(tmp_path / 'run' / 'rl' / 'trajectories' / f'{step:05d}.jsonl')
    ]
    assert len(trajectories) == 12 and any(map(went_on_after_a_tool, trajectories))
    for record in read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl'):
        values = record['values']
        assert all(map(math.isfinite, values.values()))
        assert 0 < values['sampler_gap'] < 0.05  # of rounding alone


@pytest.mark.slow
def test_evaluation(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'
    settings = {
        'data.eval': toy_runs.pocket('test', search=2, perception=2, search_only=1),
        'evaluate.lanes': 2,
        'rollout.dtype': 'bfloat16',
    }
    toy_runs.finish(
        toy_runs.start('evaluate', tmp_path / 'run', policy_folder, settings, output), output
    )
    trajectories = read_trajectories(tmp_path / 'run' / 'evaluation' / 'policy.jsonl')
    assert len(trajectories) == 5 and any(map(went_on_after_a_tool, trajectories))


@pytest.mark.slow
def test_ask(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'
    settings = {
        'image': toy_runs.ROOT / 'sensesearch_jax' / 'pocket' / 'world' / 'files' / 'relief.jpg',
        'question': 'What is this?',
        'seed': 2,  # whose first turn is a call of a tool
        'temperature': 1.0,
        'rollout.dtype': 'bfloat16',
    }
    toy_runs.finish(
        toy_runs.start('ask', tmp_path / 'run', policy_folder, settings, output), output
    )
    said = output.read_text()
    assert '→ ' in said and '── turn 2 ──' in said and 'Answer: ' in said
