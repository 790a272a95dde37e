"""Processes of one program: when one is gone the other ends and names it; told to stop, all do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_runs import free_address

from sensesearch_jax.runtime.stopping import EXIT_AGAIN

# Steps with a collective each, as in training; the rest is what `main` does around a task.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from sensesearch_jax.runtime import meeting, peers, stopping

moment, second = sys.argv[1], os.environ['JAX_PROCESS_ID'] == '1'
meeting.start(Path(sys.argv[2]), 4.0, 3.0)
if moment == 'before it has looked for devices' and second:
    os.kill(os.getpid(), signal.SIGKILL)
if moment == 'notice' and second:
    os.kill(os.getpid(), signal.SIGTERM)  # which is jax's as long as nothing else listens
stopping.listen()
try:
    with stopping.between_steps():
        for step in range(10_000):
            if step == 1:
                print('met', flush=True)
            time.sleep(1000 if moment == 'while the other waits' and step > 1 else 0.05)
            stopping.check(step_ends=True)
            if moment == 'when the other is done' and step > 1:
                time.sleep(1000 if second else 0)
                break
    peers.end(True)
except stopping.Stopped as order:
    print(order)
    peers.end(False)
    sys.exit(stopping.EXIT_AGAIN)
except Exception:
    peers.wait_for_missing()
    raise
"""


@pytest.fixture
def start(tmp_path):
    """Starts one of two processes; all are killed at the end."""
    started, address = [], free_address()

    def start(number, moment):
        environment = os.environ | {
            'JAX_COORDINATOR_ADDRESS': address,
            'JAX_NUM_PROCESSES': '2',
            'JAX_PROCESS_ID': str(number),
            'JAX_NUM_CPU_DEVICES': '1',
            'JAX_PLATFORMS': 'cpu',
        }
        process = subprocess.Popen(
            [sys.executable, '-c', PROGRAM, moment, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def have_met(processes):
    for process in processes:
        while line := process.stdout.readline():
            if line == 'met\n':
                break
        else:
            raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(
    'moment, gone',
    [
        ('before it has looked for devices', 1),
        ('between steps', 0),
        ('between steps', 1),
        ('while the other waits', 1),
        ('when the other is done', 1),
    ],
)
def test_a_process_that_is_gone_is_named(start, moment, gone):
    processes = [start(number, moment) for number in range(2)]
    if moment != 'before it has looked for devices':
        have_met(processes)
        time.sleep(0.5 if moment == 'when the other is done' else 0)
        processes[gone].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, said = processes[1 - gone].communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert processes[1 - gone].returncode == EXIT_AGAIN, said
    assert f'process {gone} of 2 has given' in said or f'process {gone} on' in said
    assert 'start the same command again in all processes' in said
    assert 'Traceback' not in said


def test_a_process_that_does_not_come_is_named(start, tmp_path):
    """With its host, if it had begun to wait as well."""
    note = tmp_path / '.waiting-1'
    note.write_text('elsewhere')
    os.utime(note, (1, 1))
    process = start(0, 'between steps')
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_AGAIN, said
    first, last = said.splitlines()
    assert 'has waited for process 1 on elsewhere of 2 for' in first
    assert 'process 1 on elsewhere of 2 has not come for 4 s, and without it' in last
    assert 'start the same command again in all processes' in last


@pytest.mark.parametrize('by', ['SIGUSR1', "jax's preemption service"])
def test_an_order_to_one_stops_both(start, by):
    processes = [start(number, 'steps' if by == 'SIGUSR1' else 'notice') for number in range(2)]
    if by == 'SIGUSR1':
        have_met(processes)
        processes[1].send_signal(signal.SIGUSR1)
    for process in processes:
        said, errors = process.communicate(timeout=60)
        assert said.splitlines()[-1] == by and process.returncode == EXIT_AGAIN, errors
