"""Processes of a sweep: runs side by side on parts of the machine, each going on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sensesearch_jax.config.resuming import reaches
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.sweep import written_config
from sensesearch_jax.sweep.plan import Run, write_config

POLL_S, LOOK_S, TELL_AGAIN_S = 0.2, 5.0, 10.0
# Chips of one process by their number, as libtpu wants to be told; other numbers are slices' own.
TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}


@dataclass(frozen=True, eq=False)
class Place:
    """The part of the machine that one run at a time has; two that may use all are two places.

    Args:
        cores: numbers of its cores; () leaves all.
        devices: numbers of its accelerators; () leaves all.
    """

    cores: tuple[int, ...] = ()
    devices: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        """Environment variables by which CUDA, ROCm and libtpu see these devices alone."""
        if not self.devices:
            return {}
        shown = ','.join(map(str, self.devices))
        bounds = {
            'TPU_VISIBLE_CHIPS': shown,
            'TPU_CHIPS_PER_PROCESS_BOUNDS': TPU_BOUNDS.get(len(self.devices), ''),
            'TPU_PROCESS_BOUNDS': '1,1,1',
        }
        return {'CUDA_VISIBLE_DEVICES': shown, 'ROCR_VISIBLE_DEVICES': shown} | (
            bounds if len(self.devices) in TPU_BOUNDS else {}
        )


def parse_places(at_once: int, cores: Sequence[str], devices: Sequence[str]) -> list[Place]:
    """Places for as many runs as are to go side by side.

    Args:
        at_once: how many, where neither cores nor devices are given.
        cores: of each place, such as '0-3,8'.
        devices: of each place, such as '0,1'.

    Raises:
        UserError: numbers that are none, cores that the machine does not give, or lists of
            different lengths.
    """
    if at_once < 1:
        raise UserError(f'--at_once is {at_once}; give 1 or more.')
    given = [list_ for list_ in (cores, devices) if list_]
    if len({len(list_) for list_ in given}) > 1:
        raise UserError(
            f'--cores is given {len(cores)} times and --devices {len(devices)} times; give each once for '
            'every run that is to go at once.'
        )
    count = len(given[0]) if given else at_once
    if given and at_once not in (1, count):
        raise UserError(
            f'--at_once is {at_once}, but --cores or --devices name {count} places; leave one of them out.'
        )
    of_cores = [_numbers('--cores', text) for text in cores] or [()] * count
    of_devices = [_numbers('--devices', text) for text in devices] or [()] * count
    wanted = {number for numbers in of_cores for number in numbers}
    if wanted and not hasattr(os, 'sched_setaffinity'):
        raise UserError('--cores needs Linux, which alone binds a process to cores; leave it out.')
    if wanted and (missing := wanted - os.sched_getaffinity(0)):
        raise UserError(
            f'--cores names core {min(missing)}, which this process may not use; it has '
            f'{sorted(os.sched_getaffinity(0))}.'
        )
    return [Place(c, d) for c, d in zip(of_cores, of_devices, strict=True)]


def job_of(environment: Mapping[str, str], jobs: int, runs: int) -> tuple[int, int]:
    """(number, count) of this process among the jobs that share out the runs; (0, 1) if it is alone.

    The number is SLURM_ARRAY_TASK_ID in a SLURM array job, and JOB_COMPLETION_INDEX in an indexed
    job of Kubernetes; both from 0.

    Args:
        environment: variables of the process.
        jobs: how many there are; 0: as many as runs.
        runs: of the sweep.

    Raises:
        UserError: the number is not below the count, or there is a count without a number.
    """
    names = 'SLURM_ARRAY_TASK_ID', 'JOB_COMPLETION_INDEX'
    found = next((name for name in names if name in environment), None)
    if not found:
        if jobs:
            raise UserError(
                f'--jobs is {jobs}, but neither {names[0]} nor {names[1]} says which of them this is; leave it '
                'out where one process makes all runs.'
            )
        return 0, 1
    count, number = jobs or runs, int(environment[found])
    if not 0 <= number < count:
        raise UserError(
            f'{found} is {number}, but {count} jobs share out the runs; number them 0 to {count - 1}, or give '
            'their count by --jobs.'
        )
    return number, count


def finished(run: Run, workdir: Path, task: str) -> bool:
    """Whether a run's task has nothing left to do."""
    marker = run.folder(workdir) / task / 'stages' / 'run.json'
    return marker.is_file() and reaches(json.loads(marker.read_text())['result'], run.tasks[task])


def next_task(run: Run, workdir: Path) -> str | None:
    """The first task of a run that is not finished; None if all are."""
    return next((task for task in run.tasks if not finished(run, workdir, task)), None)


def state_of(run: Run, workdir: Path) -> str:
    """The state of a run in a few words: its task and step."""
    task = next_task(run, workdir)
    if task is None:
        return 'finished'
    folder = run.folder(workdir) / task
    if not folder.is_dir():
        return f'{task} to be started'
    records = read_metrics(folder / 'metrics.jsonl')
    config = run.tasks[task]
    total = config.rl.steps if 'rl' in config and records and records[-1]['stage'] == 'rl' else None
    step = f', {records[-1]["stage"]} step {records[-1]["step"]}' if records else ''
    return f'{task}{step}{f" of {total}" if total and step else ""}'


@dataclass
class Going:
    """A run under way in a place."""

    run: Run
    task: str
    place: Place
    process: subprocess.Popen
    log: Path


@dataclass
class Sweep:
    """The processes of a sweep's runs.

    Args:
        workdir: of the sweep.
        places: one for each run that goes at a time.
    """

    workdir: Path
    places: Sequence[Place]
    going: list[Going] = field(default_factory=list)

    def start(self, runs: Sequence[Run]) -> dict[str, Path]:
        """Starts the runs that are not finished, and waits for them.

        A run that fails does not end the others. The next start of the sweep tries it again.

        Returns:
            Logs of the runs that failed, by their names.
        """
        left = [run for run in runs if next_task(run, self.workdir)]
        failed: dict[str, Path] = {}
        with Progress('sweep', len(runs), initial=len(runs) - len(left), unit='run') as bar:
            try:
                while left or self.going:
                    free = [p for p in self.places if p not in [g.place for g in self.going]]
                    for place, run in zip(free, left, strict=False):
                        self.going.append(self._started(run, place))
                    left = left[len(free) :]
                    self._wait(bar)
                    for ended in [g for g in self.going if g.process.poll() is not None]:
                        self.going.remove(ended)
                        if ended.process.returncode:
                            failed[ended.run.name] = ended.log
                        elif next_task(ended.run, self.workdir):
                            self.going.append(self._started(ended.run, ended.place))
                        else:
                            bar.update(1)
            finally:
                self._stop()
        return failed

    def _started(self, run: Run, place: Place) -> Going:
        task = next_task(run, self.workdir)
        config = write_config(run, task, self.workdir)
        log = run.folder(self.workdir) / f'{task}.log'

        command = [sys.executable, '-m', 'sensesearch_jax.main']
        command.append(f'--config={written_config.__file__}:{config}')
        command.append(f'--workdir={run.folder(self.workdir) / task}')
        with open(log, 'ab') as file:
            process = subprocess.Popen(
                command,
                env=os.environ | place.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if place.cores:  # its threads are still to come, and have the same
            os.sched_setaffinity(process.pid, place.cores)
        return Going(run, task, place, process, log)

    def _wait(self, bar: Progress) -> None:
        """Until a process has ended, showing meanwhile how far the runs are."""
        looked = time.monotonic()
        while all(g.process.poll() is None for g in self.going):
            time.sleep(POLL_S)
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                bar.update(0, **{g.run.name: state_of(g.run, self.workdir) for g in self.going})

    def _stop(self) -> None:
        """Tells the runs to save and end, when the sweep itself is to end."""
        while self.going:
            # Told again, since what a signal's handler raises may be lost in a callback.
            for going in self.going:
                going.process.terminate()
            told = time.monotonic()
            while self.going and time.monotonic() - told < TELL_AGAIN_S:
                time.sleep(POLL_S)
                self.going = [g for g in self.going if g.process.poll() is None]


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    """The numbers of a text such as '0-3,8'."""
    found: list[int] = []
    for part in text.split(','):
        first, _, last = part.partition('-')
        if not first.isdigit() or not (last or first).isdigit():
            raise UserError(f"{flag}={text} is no list of numbers; give one such as '0-3,8'.")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)
