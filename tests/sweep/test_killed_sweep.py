"""A sweep of two algorithms and three seeds that is killed, with all of its runs, and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_runs

from sensesearch_jax.runtime.metrics import read_metrics
from tools_server.launch import ToolServer

SETTINGS = toy_runs.SETTINGS | {
    'agent.turn_tokens': 4,
    'agent.max_turns': 2,
    'rollout.suffix_capacity': 384,
    'rollout.engines': 1,
    'rollout.warm_up': False,
    'data.rl': toy_runs.pocket('validation', perception=2),
    'rl.members': 2,
    'rl.steps': 2,
    'rl.questions_per_step': 1,
    'rl.micro_batch': 1,
    'rl.threads': 1,
    'rl.checkpoint_every': 1,
}
NAMES = {f'algorithm-{name}-{seed}' for name in ('grpo', 'gspo') for seed in range(3)}


@pytest.fixture
def tools(tmp_path):
    """One tool server for all runs: each would start its own."""
    with ToolServer.start(toy_runs.TOOLS, tmp_path / 'tools') as server:
        yield server.url


def start(workdir, output, fields):
    """The sweep as the head of a group of processes."""
    command = [
        sys.executable,
        '-m',
        'sensesearch_jax.sweep',
        '--config=configs/rl.py',
        f'--workdir={workdir}',
    ]
    command += ['--vary=rl.algorithm=grpo,gspo', '--vary=seed=0,1,2', '--at_once=2']
    command += [f'--config.{name}={value}' for name, value in (SETTINGS | fields).items()]
    with open(output, 'ab') as file:
        return subprocess.Popen(
            command, cwd=toy_runs.ROOT, env=os.environ | toy_runs.QUICK, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finished(workdir):
    """Times of the markers of the runs that are over."""
    markers = Path(workdir).glob('runs/*/rl/stages/run.json')
    return {marker.parents[2].name: marker.stat().st_mtime_ns for marker in markers}


def begun(workdir):
    """Runs that have made a step and are not over."""
    made = {
        p.parents[1].name for p in Path(workdir).glob('runs/*/rl/metrics.jsonl') if p.stat().st_size
    }
    return made - finished(workdir).keys()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(policy_folder, tools, tmp_path):
    workdir, output = tmp_path / 'sweep', tmp_path / 'output.txt'
    fields = {'policy': policy_folder, 'tools.url': tools}
    process = start(workdir, output, fields)
    while not (finished(workdir) and begun(workdir)):
        assert process.poll() is None, output.read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(workdir)
    assert before and before.keys() < NAMES
    output.write_text('')
    again = start(workdir, output, fields)
    assert again.wait(500) == 0, output.read_text()[-3000:]
    after = finished(workdir)
    assert after.keys() == NAMES and before.items() <= after.items()
    for name in NAMES:
        steps = [r['step'] for r in read_metrics(workdir / 'runs' / name / 'rl' / 'metrics.jsonl')]
        assert steps == [1, 2], name
        assert (workdir / 'runs' / name / 'rl' / 'rl' / 'policy' / 'config.json').is_file()
    assert 'sweep: 6/6' in output.read_text()
