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
import sys, time
from sensesearch_jax.runtime import multihost, peers, stopping

multihost.start(3.0)
peers.watch(3.0)
stopping.listen()
try:
    with stopping.between_steps():
        for step in range(10_000):
            if step == 1:
                print('met', flush=True)
            time.sleep(0.05 if sys.argv[1] == 'steps' or step < 2 else 1000)
            stopping.check(step)
except stopping.Stopped as order:
    print(order)
    peers.end(True)
    sys.exit(stopping.EXIT_AGAIN)
except Exception:
    peers.wait_for_missing()
    raise
"""


@pytest.fixture
def two():
    """Starts two processes that have met; they are killed at the end."""
    started = []

    def start(what):
        address = free_address()
        for number in range(2):
            environment = os.environ | {
                'JAX_COORDINATOR_ADDRESS': address,
                'JAX_NUM_PROCESSES': '2',
                'JAX_PROCESS_ID': str(number),
                'JAX_NUM_CPU_DEVICES': '1',
                'JAX_PLATFORMS': 'cpu',
            }
            command = [sys.executable, '-c', PROGRAM, what]
            started.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[2],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            while line := process.stdout.readline():
                if line == 'met\n':
                    break
            else:
                raise AssertionError(process.stderr.read())
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('what', ['steps', 'waits'])
@pytest.mark.parametrize('gone', [0, 1])
def test_a_process_that_is_gone_is_named(two, gone, what):
    """Whether the other waits in a collective or by itself."""
    processes = two(what)
    processes[gone].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, said = processes[1 - gone].communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert processes[1 - gone].returncode == EXIT_AGAIN, said
    assert f'process {gone} ' in said or f'process {gone} on' in said
    assert 'start the same command again in all processes' in said
    assert 'Traceback' not in said


def test_an_order_to_one_stops_both(two):
    processes = two('steps')
    processes[1].send_signal(signal.SIGUSR1)
    for process in processes:
        said, errors = process.communicate(timeout=60)
        assert (said, process.returncode) == ('SIGUSR1\n', EXIT_AGAIN), errors
