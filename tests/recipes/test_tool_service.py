"""RL runs and the tool server's promises: a recorded run is replayed token for token, a killed
server costs only the trajectories whose calls it took with it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_runs

from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.rewards.scorer import LEARNED_FROM
from sensesearch_jax.runtime.metrics import read_metrics
from tools_server.launch import ToolServer

ROOT = Path(__file__).parents[2]
STEPS, QUESTIONS, MEMBERS = 4, 2, 3
SETTINGS = {
    'tools.config': toy_runs.TOOLS,
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'agent.turn_tokens': 8, 'agent.max_turns': 4, 'agent.passage_chars': 120,
    'rollout.chunk': 4, 'rollout.prompt_capacity': 384, 'rollout.suffix_capacity': 380,
    'rl.steps': STEPS, 'rl.questions_per_step': QUESTIONS, 'rl.members': MEMBERS, 'rl.micro_batch': 1,
    'rl.learning_rate': 1e-2, 'rl.checkpoint_every': 99,
}  # fmt: skip


@pytest.fixture(scope='module')
def start(policy_folder, tmp_path_factory):
    """Starts an RL run in a workdir with further settings; gives its process."""
    folder = tmp_path_factory.mktemp('run')
    environment = os.environ | {
        'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1',
    }  # fmt: skip

    def start(workdir, **settings):
        settings = SETTINGS | {name.replace('__', '.'): value for name, value in settings.items()}
        command = [sys.executable, 'tests/shared/toy_policy.py', '--config=configs/rl.py',
                   f'--workdir={workdir}', f'--config.policy={policy_folder}',
                   *(f'--config.{name}={value}' for name, value in settings.items())]  # fmt: skip
        with open(folder / 'output.txt', 'ab') as output:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT)  # fmt: skip

    start.output = folder / 'output.txt'
    return start


def finish(process, start):
    try:
        assert process.wait(300) == 0, start.output.read_text()[-3000:]
    finally:
        process.kill()


def steps_of(workdir, steps=STEPS):
    return [
        read_trajectories(workdir / 'rl' / 'trajectories' / f'{step:05d}.jsonl')
        for step in range(steps)
    ]


def without_clocks(trajectory):
    value = trajectory.to_json()
    for turn in value['turns']:
        if turn['observation']:
            del turn['observation']['latency_s']
        del turn['log_probs']  # rounding differs with what happened to share a batch
    del value['question']['images']  # paths in the workdir
    return value


def by_member(trajectories):
    return {(t.question.id, t.member): without_clocks(t) for t in trajectories}


def test_a_recorded_run_is_replayed_token_for_token(start, tmp_path):
    """With a configuration whose data are not there any more: nothing but the recording can have
    answered."""
    recording = tmp_path / 'recording.sqlite'
    settings = {'rl__steps': 2, 'tools__answers': recording, 'tools__deadline_s': 100.0}
    finish(start(tmp_path / 'one', tools__mode='record', **settings), start)
    gone = shutil.copy(ROOT / toy_runs.TOOLS, tmp_path)  # without the files beside it
    replay = {'tools.mode': 'replay', 'tools.config': gone}
    finish(start(tmp_path / 'two', **settings | replay), start)
    recorded, replayed = steps_of(tmp_path / 'one', 2), steps_of(tmp_path / 'two', 2)
    assert list(map(by_member, recorded)) == list(map(by_member, replayed))
    actions = {type(turn.action).__name__ for step in recorded for t in step for turn in t.turns}
    assert {'TextSearch', 'ImageSearch', 'ImageCrop'} <= actions
    assert all(t.state is not SampleState.INFRA_FAILED for step in replayed for t in step)
    assert sum(len(step) for step in replayed) == 2 * QUESTIONS * MEMBERS


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_costs_only_its_own_calls(start, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as found:
        port = found.getsockname()[1]

    @contextlib.contextmanager
    def server():
        with ToolServer.start(toy_runs.TOOLS, tmp_path / 'tools', port=port) as running:
            yield running

    workdir, first = tmp_path / 'run', '00000.jsonl'
    with server() as running:
        process = start(workdir, tools__url=running.url)
        path = workdir / 'rl' / 'trajectories' / first
        # the first group is there, others are in flight
        while not (path.exists() and path.read_text()):
            assert process.poll() is None, start.output.read_text()[-3000:]
            time.sleep(0.005)
        running.process.kill()
        running.process.wait()
    while len(read_metrics(workdir / 'metrics.jsonl', 'rl')) < 2:  # a whole step without tools
        assert process.poll() is None, start.output.read_text()[-3000:]
        time.sleep(0.005)
    # a step without tools is over sooner than a server has started
    process.send_signal(signal.SIGSTOP)
    with server():
        process.send_signal(signal.SIGCONT)
        finish(process, start)

    steps, metrics = steps_of(workdir), read_metrics(workdir / 'metrics.jsonl', 'rl')
    assert [len(step) for step in steps] == [QUESTIONS * MEMBERS] * STEPS and len(metrics) == STEPS
    assert any(t.state is SampleState.INFRA_FAILED for step in steps for t in step)
    assert any(t.state is SampleState.OK for t in steps[0]) and any(
        t.state in LEARNED_FROM for t in steps[-1]
    )
    for step, record in zip(steps, metrics, strict=True):
        values, counted = record['values'], [t for t in step if t.state in LEARNED_FROM]
        # calls of tools, and of the judge
        for state in (SampleState.INFRA_FAILED, SampleState.UNSCORABLE):
            assert values.get(state.value, 0.0) == pytest.approx(
                sum(t.state is state for t in step) / len(step)
            )
        if counted:  # rewards of those that count, and of no other, make the statistics
            assert values['reward'] == pytest.approx(
                np.mean([t.reward['total'] for t in counted]), rel=1e-5
            )
        assert values['frac_reward_zero_std'] == pytest.approx(zero_std_share(step), abs=1e-6)
        assert np.isfinite(values.get('loss', 0.0))


def zero_std_share(step):
    """Share of groups in which rewards are equal, by the trajectories that count alone."""
    groups = {}
    for t in step:
        if t.state in LEARNED_FROM:
            groups.setdefault(t.question.id, []).append(t.reward['total'])
    return np.mean([max(rewards) == min(rewards) for rewards in groups.values()]) if groups else 0.0
