r"""Runs over settings and seeds, side by side, and their comparison: python -m sensesearch_jax.sweep.

    python -m sensesearch_jax.sweep --config=configs/sweep_algorithms.py --workdir=runs/sweep
    python -m sensesearch_jax.sweep --config=configs/rl.py --workdir=runs/rates \
        --vary=rl.learning_rate=1e-4,3e-5 --vary=seed=0,1,2
    python -m sensesearch_jax.sweep --runs=sft=runs/evaluate_sft --runs=rl=runs/evaluate_rl --workdir=runs/compared

docs/sweeps.md says more.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from sensesearch_jax import main as task_main
from sensesearch_jax.agent.protocol import DEFAULT, PROTOCOLS, Protocol
from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.paper_table import terminal
from sensesearch_jax.runtime import stopping
from sensesearch_jax.runtime.workdir import atomic_write
from sensesearch_jax.sweep import items, page, plan, results, runner, tables

VARY = flags.DEFINE_multi_string(
    'vary',
    [],
    "A field with its values, such as --vary=seed=0,1,2; several make all combinations. In place of the config's "
    'get_hyper.',
)
AT_ONCE = flags.DEFINE_integer('at_once', 1, 'Runs side by side.')
CORES = flags.DEFINE_multi_string(
    'cores', [], 'Cores of one of the runs side by side, such as --cores=0-3; given once for each.'
)
DEVICES = flags.DEFINE_multi_string(
    'devices', [], 'Accelerators of one of them, such as --devices=0,1; given once for each.'
)
JOBS = flags.DEFINE_integer(
    'jobs', 0, 'Jobs of an array that share out the runs; 0: as many as runs.'
)
RUNS = flags.DEFINE_multi_string(
    'runs',
    [],
    'A setting of runs that are there already, and the workdirs of its seeds: --runs=NAME=DIR,DIR. In place of a '
    '--config.',
)
PAIR = flags.DEFINE_string(
    'pair',
    None,
    'Two settings, FIRST,SECOND, that the page shows item by item; else the first and the last.',
)
PROTOCOL = flags.DEFINE_enum(
    'protocol', 'default', sorted(PROTOCOLS), 'Text form of the trajectories of --runs.'
)
STATUS = flags.DEFINE_bool(
    'status', False, 'Prints the state of each run, compares those that are over, and starts none.'
)

PRINTED = 20  # flipped questions


def main(arguments: Sequence[str]) -> None:
    """Starts the runs that are not finished, or reads those of --runs, and compares them."""
    if len(arguments) > 1:
        raise UserError(f"'{arguments[1]}' is no option; `--help` lists all.")
    workdir = Path(task_main.WORKDIR.value) if task_main.WORKDIR.value else None
    if RUNS.value:
        given = [setting for text in RUNS.value for setting in given_runs(text)]
        if workdir:
            workdir.mkdir(parents=True, exist_ok=True)
        return compare(workdir, given, [], PROTOCOLS[PROTOCOL.value])
    if not workdir:
        raise UserError('A sweep needs a --workdir, in which it goes on after a stop.')
    runs = planned()
    if STATUS.value:
        width = max(len(run.name) for run in runs)
        for run in runs:
            print(f'{run.name:<{width}}  {runner.state_of(run, workdir)}')
        if plan.planned_before(workdir):
            compare_finished(workdir, runs)
        return None
    stopping.listen()
    places = runner.parse_places(AT_ONCE.value, CORES.value, DEVICES.value)
    number, count = runner.job_of(os.environ, JOBS.value, len(runs))
    plan.write_plan(runs, workdir)
    own = runs[number::count]
    if count > 1:
        print(f'Job {number} of {count}: {", ".join(run.name for run in own)}.', file=sys.stderr)
    failed = runner.Sweep(workdir, places).start(own)
    compare_finished(workdir, runs)
    if failed:
        said = '; '.join(f'{name}: {last_line(log)} ({log})' for name, log in failed.items())
        raise UserError(
            f'{len(failed)} of {len(own)} runs failed, and the same command tries them again: {said}'
        )


def compare_finished(workdir: Path, runs: Sequence[plan.Run]) -> None:
    """Compares the runs of a sweep that are over, if there are any."""
    found, left = results.read_sweep(workdir)
    agents = [config.agent for config in runs[-1].tasks.values() if 'agent' in config]
    if found:
        compare(workdir, found, left, protocol_of(agents[-1]) if agents else DEFAULT)


def given_runs(text: str) -> list[results.Evidence]:
    """The runs of a text NAME=PATH,PATH; a path is a seed of its own.

    Raises:
        UserError: it is no such text, or nothing is there.
    """
    name, found, paths = text.partition('=')
    if not (name and found and paths):
        raise UserError(f"--runs={text} names no workdirs; give --runs='NAME=DIR,DIR'.")
    return [
        run
        for seed, path in enumerate(paths.split(','))
        for run in results.read_run(Path(path), name, seed)
    ]


def compare(
    workdir: Path | None, found: Sequence[results.Evidence], left: Sequence[str], protocol: Protocol
) -> None:
    """Prints the tables, and writes summary.json, curves.json, sweep.md and sweep.html.

    Args:
        workdir: where they are written; None: they are not.
        found: the runs.
        left: names of runs that are not over.
        protocol: the text form of their trajectories.
    """
    summary = results.summarise_sweep(found, left)
    pair = chosen_pair(found)
    print(tables.printed(summary))
    if pair:
        flips = items.flip_rows(items.compare_items(*pair.values()), *pair)
        shown = [[cell[:48] for cell in row] for row in flips[: PRINTED + 1]]
        said = terminal(shown) or 'No question flipped.'
        print(f'\n{" → ".join(pair)}, question by question\n{said}')
        if len(flips) > PRINTED + 1:
            print(f'… and {len(flips) - PRINTED - 1} more')
    if not workdir:
        return
    command = f'python -m sensesearch_jax.sweep {" ".join(sys.argv[1:])}'
    results.write_summary(summary, workdir)
    atomic_write(workdir / 'sweep.md', tables.as_markdown(workdir.name, command, summary))
    images, path = functools.partial(results.image_of, found), workdir / 'sweep.html'
    size = page.write_sweep_page(path, workdir.name, summary, pair, images, protocol, command)
    print(f'\n{path} ({size / 1e6:.1f} MB): results, curves, what flipped.')


def chosen_pair(found: Sequence[results.Evidence]) -> dict[str, list[Trajectory]]:
    """Trajectories of all seeds of the two settings that are shown item by item; {} without two.

    Raises:
        UserError: --pair names a setting that has no evaluation.
    """
    evaluated: dict[str, list[Trajectory]] = {}
    for run in found:
        if run.trajectories:
            evaluated.setdefault(run.setting, []).extend(run.trajectories)
    names = list(evaluated)
    chosen = PAIR.value.split(',') if PAIR.value else [names[0], names[-1]] if names else []
    if unknown := [name for name in chosen if name not in evaluated]:
        raise UserError(f"--pair names '{unknown[0]}'; the evaluated settings are {names}.")
    return {name: evaluated[name] for name in chosen} if len(set(chosen)) == 2 else {}


def planned() -> list[plan.Run]:
    """The runs of the command line's config, by --vary or by the `get_hyper` beside `get_config`."""
    config = task_main.config_of_flag()
    return plan.plan(config, plan.parse_vary(VARY.value) if VARY.value else hyper())


def hyper() -> list[dict[str, Any]]:
    """Settings that the config file's `get_hyper` returns, with the argument of its `get_config`."""
    given = config_flags.get_config_filename(flags.FLAGS['config'])
    path, _, argument = given.partition(':')
    spec = importlib.util.spec_from_file_location('sweep_config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_hyper'):
        raise UserError(
            f'{path} has no get_hyper, so that there is nothing to vary; add one, or give --vary=FIELD=VALUE,VALUE.'
        )
    return module.get_hyper(argument) if argument else module.get_hyper()


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(errors='replace').strip().splitlines()
    said = [line for line in lines if not line.startswith('(SENSESEARCH_TRACEBACK')]
    return said[-1] if said else 'it said nothing'


if __name__ == '__main__':
    app.run(lambda given: task_main.guarded(given, main), flags_parser=task_main.parse_flags)
