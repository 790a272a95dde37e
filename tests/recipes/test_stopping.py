"""A run that a scheduler stops saves its state, says how to go on, and goes on from there."""

import json
import signal
import time
from types import SimpleNamespace

import jax
import toy_runs

from sensesearch_jax.recipes.rl_rollout import prune_trajectories
from sensesearch_jax.recipes.session import every_process
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN

SETTINGS = {
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'rl.steps': 100,
    'rl.questions_per_step': 2,
    'rl.micro_batch': 1,
    'rl.checkpoint_every': 100,
}


def test_a_stopped_run_saves_the_steps_that_it_has_made(policy_folder, tmp_path):
    output, workdir = tmp_path / 'output.txt', tmp_path / 'run'

    def steps():
        return [r['step'] for r in read_metrics(workdir / 'metrics.jsonl', 'rl')]

    def run_until(made, order):
        process = toy_runs.start('rl', workdir, policy_folder, SETTINGS, output)
        while made not in steps():
            assert process.poll() is None, output.read_text()[-3000:]
            time.sleep(0.005)
        process.send_signal(order)
        assert process.wait(120) == EXIT_AGAIN, output.read_text()[-3000:]
        (saved,) = [int(p.name) for p in (workdir / 'rl' / 'checkpoints').iterdir()]
        return saved

    first = run_until(1, signal.SIGTERM)
    assert first >= 1
    assert 'stopped by SIGTERM, and everything is saved; start the same command' in (
        output.read_text()
    )
    second = run_until(first + 1, signal.SIGUSR1)
    assert second > first and 'stopped by SIGUSR1' in output.read_text()
    assert steps()[:second] == list(range(1, second + 1))
    for file in (workdir / 'rl' / 'trajectories').iterdir():
        named = [(t['question']['id'], t['member']) for t in map(json.loads, file.open())]
        assert len(named) == len(set(named))


def test_trajectories_of_old_steps_are_deleted(tmp_path):
    folder = tmp_path / 'rl' / 'trajectories'
    folder.mkdir(parents=True)
    for step in (0, 7, 8, 9, 100_000):
        (folder / f'{step:05d}.jsonl').write_text('{}\n')
    prune_trajectories(SimpleNamespace(workdir=tmp_path), 8)
    assert sorted(int(file.stem) for file in folder.iterdir()) == [8, 9, 100_000]


def test_groups_are_found_that_other_processes_have_sampled(tmp_path, monkeypatch):
    """Of an earlier start with three processes, whichever of fewer looks for them."""
    for name in (
        'run',
        'run-process-1',
        'run-process-2',
        'run-process-two',
        'run-compiled',
        'runs',
    ):
        (tmp_path / name).mkdir()
    for number, own in ((0, 'run'), (1, 'run-process-1')):
        monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
        session = SimpleNamespace(workdir=SimpleNamespace(path=tmp_path / own))
        found = every_process(tmp_path / own / 'rl' / '0.jsonl', session)
        assert sorted(str(path.relative_to(tmp_path)) for path in found) == [
            'run-process-1/rl/0.jsonl', 'run-process-2/rl/0.jsonl', 'run/rl/0.jsonl',
        ]  # fmt: skip
