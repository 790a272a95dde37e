"""Runs of the toy policy as forks of a process that has imported everything, for many starts."""

import atexit
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
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


def start(
    workdir: str,
    policy: Path,
    settings: dict,
    output: Path,
    count: int = 1,
    config: str = 'rl',
    **environment: str,
) -> list:
    """The processes of a run, one or with `multi_host` several, with `environment` beside this process's own.

    With TOY_TOLD=1 the second one gets SIGTERM before it listens, so that jax alone hears of it; with
    TOY_STEPS=3 SFT makes three steps and waits to be killed; TOY_PUSH_S is in the place of the time
    between two uploads.
    """
    # The server's own: jax reads it as it is imported, and the toy is looked for on its path.
    path = os.pathsep.join([str(toy_runs.ROOT), str(Path(__file__).parent)])
    with mock.patch.dict(os.environ, toy_runs.QUICK | {'PYTHONPATH': path}):
        multiprocessing.forkserver.ensure_running()
    settings = toy_runs.fields_of(config, toy_runs.SETTINGS) | settings
    arguments = [
        'toy',
        f'--config={toy_runs.config_file(config)}',
        f'--workdir={workdir}',
        f'--config.policy={policy}',
        *(f'--config.{name}={value}' for name, value in settings.items()),
    ]
    multi_host = settings.get('multi_host', False)
    several = {'JAX_COORDINATOR_ADDRESS': toy_runs.free_address(), 'JAX_NUM_PROCESSES': str(count)}
    processes = []
    for i in range(count):
        own = environment | (several | {'JAX_PROCESS_ID': str(i)} if multi_host else {})
        processes.append(FORKS.Process(target=_run, args=(arguments, own, output)))
        processes[-1].start()
    return processes


def _replace() -> None:
    """Puts in place what the environment asks for, see `start`."""
    from sensesearch_jax.recipes import sft
    from sensesearch_jax.runtime import stopping, storage

    storage.PUSH_S = float(os.environ.get('TOY_PUSH_S', storage.PUSH_S))
    left = itertools.repeat(1, int(os.environ.get('TOY_STEPS', 1_000_000)))

    def listen(listens=stopping.listen) -> None:
        if os.environ.get('TOY_TOLD', '') == os.environ.get('JAX_PROCESS_ID', 'none'):
            os.kill(os.getpid(), signal.SIGTERM)
        listens()

    class Learner(sft.Learner):
        def sft_step(self, *given):
            if not next(left, 0):
                threading.Event().wait()
            return super().sft_step(*given)

    stopping.listen, sft.Learner = listen, Learner


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
    _replace()
    sys.argv = arguments
    try:
        command.guarded(command.parse_flags(arguments))
    finally:
        atexit._run_exitfuncs()  # which such a process leaves out; jax's is among them
