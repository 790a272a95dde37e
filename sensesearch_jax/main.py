"""python -m sensesearch_jax.main --config=FILE [--config.field=value …] [--workdir=DIR]: starts the
task of a config.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.allocator import keep_memory

# task -> module with its `run(config, workdir)`
TASKS = {
    **{
        name: f'sensesearch_jax.recipes.{name}'
        for name in ('cold_start', 'sft', 'rl', 'evaluate', 'ask', 'build_benchmark')
    },
    'pocket': 'sensesearch_jax.pocket.run',
    'base': 'sensesearch_jax.pocket.pretraining.run',
}

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'One of configs/*.py; its docstring says what it does.'
)
WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Where everything is written, and where a run that was interrupted goes '
    'on. A new temporary folder if not given.',
)

MULTI_HOST = 'cold_start', 'sft', 'rl', 'evaluate'
REPEATED = ('ask',)  # leaves nothing but pictures, so that the same question may be asked again


def main(arguments: list[str]) -> None:
    """Checks what was asked for, opens the workdir, runs the task."""
    if len(arguments) > 1:
        raise UserError(f"'{arguments[1]}' is no option; fields are set as --config.field=value.")
    config = config_of_flag()
    name = config.get('task')
    if name not in TASKS:
        raise UserError(f"The config's task '{name}' is unknown; choose from {', '.join(TASKS)}.")
    # Libraries tell at length what they set up; only warnings are for the reader of a run.
    logging.getLogger('absl').setLevel(logging.WARNING)
    logging.getLogger('jax').setLevel(logging.WARNING)
    from sensesearch_jax.config.resuming import (
        check_paths,
        extent,
        fetch_inputs,
        may_change,
        reaches,
    )
    from sensesearch_jax.runtime import meeting, multihost, stopping, storage

    check_paths(config, WORKDIR.value)
    from sensesearch_jax.runtime.compiling import enable_compilation_cache, user_cache_folder
    from sensesearch_jax.runtime.progress import keep_file
    from sensesearch_jax.runtime.workdir import Workdir

    if config.get('multi_host', False):
        if name not in MULTI_HOST or not WORKDIR.value:
            raise UserError(
                f'multi_host is for {", ".join(MULTI_HOST)} with a --workdir that all hosts see.'
            )
        for field in ('meet_timeout_s', 'peer_timeout_s'):
            if not config[field] > 0:
                raise UserError(f'{field} is {config[field]}; give more than 0.')
        workdir = Path(WORKDIR.value)
        meeting.start(workdir, config.meet_timeout_s, config.peer_timeout_s)
        programs = workdir.with_name(f'{workdir.name}-compiled')  # which all hosts see
    else:
        programs = user_cache_folder()
    stopping.listen()
    enable_compilation_cache(config.compilation_cache, programs)
    from sensesearch_jax.config.checks import check
    from sensesearch_jax.data.questions import prepare_sources

    given = config.to_dict()  # with addresses, which pin the workdir
    fetch_inputs(config)
    check(config)
    if 'data' in config:
        prepare_sources(config.data)
    path = WORKDIR.value or tempfile.mkdtemp(prefix='sensesearch-')
    task = importlib.import_module(TASKS[name])
    with (
        storage.local_workdir(path, config.get('scratch', '')) as path,
        Workdir.open(
            own := multihost.process_folder(path),
            given,
            ignore=('workdir', *may_change(config)),
            beside=multihost.earlier_folders(own.resolve()),
        ) as workdir,
    ):
        if not WORKDIR.value:
            print(f'Writing to {Path(path)}', file=sys.stderr)
        done = (
            name not in REPEATED
            and workdir.stage_done('run')
            and reaches(workdir.stage_result('run'), config)
        )
        if multihost.broadcast(done):
            print(
                f'The run in {workdir.path} is finished, and nothing in it was changed; another one wants another '
                '--workdir.',
                file=sys.stderr,
            )
            return
        keep_file(workdir / 'progress.json')
        task.run(config, workdir)
        workdir.mark_done('run', extent(config))


def config_of_flag() -> ConfigDict:
    """The config of the flag.

    Raises:
        UserError: there is none, or no such file.
    """
    config = CONFIG.value
    if config is None:
        raise UserError(
            'There is no --config; give one of configs/*.py, such as --config=configs/pocket.py.'
        )
    try:
        config.get('task')
    except OSError:  # only a look at a field tells that there is no such file
        given = next((a for a in sys.argv if a.startswith(('--config=', '-config='))), '--config')
        if Path(given.partition('=')[2].partition(':')[0]).is_file():
            raise  # something that the file itself wants is missing
        raise UserError(f'{given} names no file; give one of configs/*.py.') from None
    return config


def parse_flags(arguments: list[str]) -> list[str]:
    """Absl's parsing, with one sentence for an unknown config field or a value of another type."""
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:
        if any(frame.name == 'get_config' for frame in traceback.extract_tb(error.__traceback__)):
            raise  # a fault of the config file, not of the command
        print(
            f'sensesearch_jax: the config has no field {error}; its fields stand in the --config file.',
            file=sys.stderr,
        )
    except (flags.Error, TypeError, ValueError) as error:
        # ml_collections makes text of what a config raises, its traceback and all; the last line
        # says it.
        last = str(error).strip().splitlines()[-1]
        kind, _, said = last.partition(': ')
        by_user = kind.rpartition('.')[2] == UserError.__name__
        if 'Error whilst parsing config file' in str(error) and not by_user:
            raise
        print(f'sensesearch_jax: {said if by_user else last}', file=sys.stderr)
    sys.exit(2)


def guarded(arguments: list[str], started: Callable[[list[str]], None] | None = None) -> None:
    """`main` or another; the caller's mistakes end in a sentence and exit code 2, faults of the code
    raise.
    """
    from sensesearch_jax.runtime import peers, stopping
    from tools_server.launch import ToolServerError

    try:
        (started or main)(arguments)
        peers.end(True)
    except (UserError, ToolServerError) as error:
        if os.environ.get('SENSESEARCH_TRACEBACK'):
            raise
        print(f'sensesearch_jax: {error}\n(SENSESEARCH_TRACEBACK=1 shows where.)', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            'sensesearch_jax: interrupted; start again with the same --workdir to go on.',
            file=sys.stderr,
        )
        sys.exit(130)
    except stopping.Stopped as order:
        print(
            f'sensesearch_jax: stopped by {order}, and everything is saved; start the same command again'
            f'{"" if WORKDIR.value else ", with the --workdir that was told above,"} to go on '
            f'(exit code {stopping.EXIT_AGAIN}).',
            file=sys.stderr,
        )
        sys.exit(stopping.EXIT_AGAIN)
    except Exception:
        peers.wait_for_missing()  # whose end may be the cause
        raise
    finally:
        peers.end(False)


if __name__ == '__main__':
    keep_memory('sensesearch_jax.main')
    app.run(guarded, flags_parser=parse_flags)
