"""RL as two processes, each with its own questions, devices and tool server, is the RL of one."""

import numpy as np
import pytest
import toy_runs
from safetensors.numpy import load_file

from sensesearch_jax.runtime.metrics import read_metrics

SETTINGS = {
    'data.rl': toy_runs.pocket('validation', search=5, perception=2, search_only=1),
    'rl.steps': 2,
    'rl.epochs': 2,
    'rl.questions_per_step': 6,
    'rl.micro_batch': 4,
    'rl.pack_step': 128,
    'rl.kl_coefficient': 0.1,
    'rl.checkpoint_every': 1,
    'rl.validate_every': 2,
    'data.validation': toy_runs.pocket('validation', search=2, perception=1),
    'validation.lanes': 2,
}


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(policy_folder, tmp_path):
    output = tmp_path / 'output.txt'
    toy_runs.finish(toy_runs.start('rl', tmp_path / 'one', policy_folder, SETTINGS, output), output)
    toy_runs.several('rl', tmp_path / 'two', policy_folder, SETTINGS | {'mesh.fsdp': 4}, output)

    def trajectories(name, step):
        return (
            (tmp_path / name / 'rl' / 'trajectories' / f'{step:05d}.jsonl').read_text().count('\n')
        )

    for step in range(2):
        assert trajectories('one', step) == 18
        assert trajectories('two', step) == trajectories('two-process-1', step) == 9
    ours, theirs, second = (
        read_metrics(tmp_path / name / 'metrics.jsonl', 'rl')
        for name in ('two', 'one', 'two-process-1')
    )
    # Each process asks its share of validation's questions, and all hear of all answers.
    validated = [[r for r in rs if 'validation/turns' in r['values']] for rs in (ours, second)]
    assert [r['step'] for r in validated[0]] == [0, 2]
    assert [r['values'] for r in validated[0]] == [r['values'] for r in validated[1]]
    first = ours[0]['values'], theirs[0]['values']
    for name in ('validation/turns', 'validation/accuracy', 'validation/tool_calls/text_search'):
        assert first[0][name] == first[1][name]
    for name, count in (('two', 3), ('two-process-1', 1)):
        file = tmp_path / name / 'validation' / 'rl' / '000002' / 'greedy.jsonl'
        assert file.read_text().count('\n') == count
    ours, theirs = ([r for r in rs if 'reward' in r['values']] for rs in (ours, theirs))
    assert len(ours) == len(theirs) == 2
    hosts = [(r['values']['slowest_host'], r['values']['slowest_process']) for r in ours]
    assert all(ratio >= 1 and number in (0, 1) for ratio, number in hosts)
    assert not any('slowest_host' in r['values'] for r in theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in (
            'reward',
            'turns',
            'frac_reward_zero_std',
            'batch_gain',
            'loss',
            'kl',
            'grad_norm',
            'sampler_gap',
        ):
            assert one['values'][name] == pytest.approx(
                other['values'][name], rel=2e-3, abs=1e-5
            ), name
    before, *after = (
        load_file(folder / 'model.safetensors')
        for folder in (
            policy_folder,
            *(tmp_path / name / 'rl' / 'policy' for name in ('one', 'two')),
        )
    )

    def distance(one, other):
        return np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one))

    assert distance(*after) < 1e-2 * distance(before, after[0])
    assert distance(before, after[0]) > 1e-1
