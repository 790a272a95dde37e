"""A run as its workdir tells of it: state, progress, alarms, metrics, newest trajectories, pictures.

Everything is read from files that the run writes, as they are at the moment; nothing is written.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.alarm_log import FILE as ALARMS
from sensesearch_jax.runtime.alarm_log import read_alarms
from sensesearch_jax.runtime.metrics import Record, read_metrics
from sensesearch_jax.runtime.workdir import is_held

# Files of trajectories, of all tasks.
TRAJECTORIES = (
    'rl/trajectories/*.jsonl', 'evaluation/*.jsonl', 'cold_start/expert.jsonl', 'benchmark/trajectories.jsonl',
    'validation/**/*.jsonl',
)  # fmt: skip
TAIL_BYTES = 24_000_000  # of such a file that are read
QUESTIONS = 12  # newest ones that are shown
SHOWN_ALARMS = 40
HASH = re.compile('[0-9a-f]{64}')


class Run:
    """A run, by its workdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = ConfigDict(json.loads((folder / 'config.json').read_text()))

    def state(self) -> dict[str, Any]:
        """The run at this moment, as JSON: `task`, `state` ('running', 'finished' or 'stopped'),
        `progress` (see `runtime.progress.keep_file`; null if there is none), `alarms` (those that are
        raised, newest first, with their lines of alarms.jsonl), `history` (the newest lines), `age_s`
        (seconds since it last wrote something), and `versions` that change with what is shown.
        """
        lines = read_alarms(self.folder / ALARMS)
        raised: dict[tuple[str, str], dict[str, Any]] = {}
        for line in lines:
            key = line['stage'], line['alarm']
            raised.pop(key, None)
            if not line['over']:
                raised[key] = line
        finished = (self.folder / 'stages' / 'run.json').exists()
        running = is_held(self.folder)
        progress = self._progress()
        newest = self.trajectory_files()
        times = [progress['time']] if progress else []
        times += [path.stat().st_mtime for path in (self.folder / 'metrics.jsonl', *newest[:1])
                  if path.exists()]  # fmt: skip
        return {
            'task': self.config.task,
            'state': 'running' if running else 'finished' if finished else 'stopped',
            'progress': progress,
            'alarms': [*raised.values()][::-1],
            'history': lines[::-1][:SHOWN_ALARMS],
            'age_s': time.time() - max(times) if times else None,
            'versions': {
                'curves': _version(self.folder / 'metrics.jsonl'),
                'trajectories': ' '.join(map(_version, newest[:2])),
            },
        }

    def metrics(self) -> list[Record]:
        """The metrics so far.

        Raises:
            UserError: the file is damaged.
        """
        return read_metrics(self.folder / 'metrics.jsonl')

    def protocol(self) -> Protocol | None:
        """The text form of its trajectories; None of a task without an agent."""
        return protocol_of(self.config.agent) if 'agent' in self.config else None

    def trajectory_files(self) -> list[Path]:
        """Its files of trajectories, the one that was written last first."""
        found = {path for pattern in TRAJECTORIES for path in self.folder.glob(pattern)}
        return sorted(found, key=lambda path: (path.stat().st_mtime, path), reverse=True)

    def newest_trajectories(self) -> list[list[Trajectory]]:
        """The trajectories of the newest questions, by question, the newest first."""
        groups: dict[tuple[Path, str, str], dict[int, Trajectory]] = {}
        for path in self.trajectory_files():
            for trajectory in _from_the_end(path):
                key = path, trajectory.question.source, trajectory.question.id
                if key not in groups and len(groups) == QUESTIONS:
                    return [[of[m] for m in sorted(of)] for of in groups.values()]
                groups.setdefault(key, {}).setdefault(trajectory.member, trajectory)
        return [[of[m] for m in sorted(of)] for of in groups.values()]

    def picture(self, sha256: str) -> bytes | None:
        """The file of a picture by its hash: from the run's tool server's folder, or from the tool
        server that it was told.
        """
        if not HASH.fullmatch(sha256):
            return None
        tools = self.config.get('tools') or ConfigDict({'folder': '', 'url': ''})
        first = self.folder.with_name(re.sub(r'-process-\d+$', '', self.folder.name))
        folder = Path(tools.folder) if tools.folder else first / 'tools'
        path = folder / 'images' / sha256[:2] / sha256
        if path.is_file():
            return path.read_bytes()
        found = ToolClient(tools.url).image(sha256) if tools.url else None
        return found if isinstance(found, bytes) else None

    def _progress(self) -> dict[str, Any] | None:
        path = self.folder / 'progress.json'  # which is replaced as a whole
        return json.loads(path.read_text()) if path.exists() else None


def runs_in(folder: Path) -> dict[str, Run]:
    """The runs of a folder by name: itself, or the workdirs in it, but for those of a run's further
    processes.

    Raises:
        UserError: there is no such folder, or its configuration cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}; give the --workdir of a run.')
    folder = folder.resolve()
    if (folder / 'config.json').exists():
        folders = [folder]
    else:
        folders = [
            path
            for path in sorted(folder.iterdir())
            if (path / 'config.json').exists() and not re.search(r'-process-\d+$', path.name)
        ]
    try:
        return {path.name: Run(path) for path in folders}
    except (OSError, ValueError) as error:
        raise UserError(f'A run in {folder} cannot be read: {error}.') from None


def _from_the_end(path: Path) -> Iterator[Trajectory]:
    """The trajectories of a file from the last one on, as far as `TAIL_BYTES` reach."""
    with open(path, 'rb') as file:
        size = file.seek(0, 2)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        data = file.read()
    lines = data[: data.rfind(b'\n') + 1].splitlines()
    for line in reversed(lines[1:] if start else lines):
        yield Trajectory.from_json(json.loads(line))


def _version(path: Path) -> str:
    """A text that changes whenever a file does."""
    if not path.exists():
        return ''
    found = path.stat()
    return f'{path.name}-{found.st_size}-{found.st_mtime_ns}'
