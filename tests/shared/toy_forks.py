"""RL runs of the toy policy as forks of a process that has imported everything, for many starts."""

import atexit
import json
import multiprocessing
import os
import sys
from pathlib import Path
from unittest import mock

import toy_runs
from PIL import Image

from sensesearch_jax import main as command

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['toy_policy', 'sensesearch_jax.config.checks'])


def write_questions(folder: Path, count: int) -> Path:
    """A file of questions about small pictures of one colour each."""
    lines = []
    for i in range(count):
        Image.new('RGB', (160, 120), (20 * i, 255 - 20 * i, 128)).save(folder / f'{i}.png')
        record = {'id': str(i), 'question': f'What is at {i}?', 'image': f'{i}.png', 'answer': 'it'}
        lines.append(json.dumps(record) + '\n')
    (folder / 'questions.jsonl').write_text(''.join(lines))
    return folder / 'questions.jsonl'


def start(workdir: str, policy: Path, settings: dict, output: Path, count: int) -> list:
    """The processes of an RL run, one or several."""
    settings = toy_runs.fields_of('rl', toy_runs.SETTINGS) | settings
    arguments = [
        'toy',
        f'--config={toy_runs.config_file("rl")}',
        f'--workdir={workdir}',
        f'--config.policy={policy}',
        *(f'--config.{name}={value}' for name, value in settings.items()),
    ]
    several = {'JAX_COORDINATOR_ADDRESS': toy_runs.free_address(), 'JAX_NUM_PROCESSES': str(count)}
    processes = []
    for i in range(count):
        environment = several | {'JAX_PROCESS_ID': str(i)} if count > 1 else {}
        processes.append(FORKS.Process(target=_run, args=(arguments, environment, output)))
        processes[-1].start()
    return processes


def _run(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    import toy_policy
    from jax._src import compiler, distributed

    def write(*arguments, to_cache=compiler._cache_write):
        """In the place of jax's, which writes no programs of the other processes."""
        with mock.patch.object(distributed.global_state, 'process_id', 0):
            to_cache(*arguments)

    compiler._cache_write = write
    with open(output, 'ab') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ |= environment
    toy_policy.replace()
    sys.argv = arguments
    try:
        command.guarded(command.parse_flags(arguments))
    finally:
        atexit._run_exitfuncs()  # which such a process leaves out; jax's is among them
