"""Two and four processes that talk to each other make the steps that one makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import one_of_several
import pytest
from toy_runs import free_address

TESTS = Path(__file__).parents[1]


def run(folder, processes):
    """Results of each of so many processes."""
    folder.mkdir()
    address = free_address()
    path = os.pathsep.join(
        [str(TESTS.parent), str(TESTS / 'shared'), os.environ.get('PYTHONPATH', '')]
    )
    environment = os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'}
    commands = [
        [sys.executable, one_of_several.__file__, address, str(processes), str(i), str(folder)]
        for i in range(processes)
    ]
    started = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=580)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f'{i}.json').read_text()) for i in range(processes)]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    return one_of_several.step(tmp_path_factory.mktemp('alone'))


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_learns(processes, alone, tmp_path):
    for found in run(tmp_path / 'run', processes):
        for name in ('losses', 'rl', 'norm'):
            assert found[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-6), name
        assert tuple(found['lengths']) == tuple(alone['lengths'])
