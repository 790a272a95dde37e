"""Workdir of a run: its lock, its configuration, markers of finished stages, and atomic writes.

A run may be killed at any moment and started again in the same directory. So each file is either
the old one or the new one, a stage is done when it has a marker and not before, and two processes
never work in one directory. POSIX only (advisory locks).
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import get_ident
from typing import Any, Self

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.closing import Closing

BEAT_S, STALE_S = 60.0, 600.0
"""Interval of the lock's heartbeat, and its age from which a run on another host counts as dead, in seconds."""

_held: dict[Path, threading.Event] = {}
"""Open workdirs of this process, with the events that end their heartbeats.

A lock file alone does not distinguish them from those of a dead process with our number.
"""


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file atomically: a reader, even after a crash, sees the old content or the new.

    The data are written to disk under a temporary name beside the target, which they then replace.

    Args:
      path: file to write; its directory must exist.
      data: the content; text is encoded as UTF-8.

    Raises:
      OSError: the directory is missing, not writable or full; the old content is then untouched.
    """
    path = Path(path)
    # Two threads, or a process and its killed predecessor, must not share a temporary file.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.{get_ident()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The new name is safe from a power cut only once the directory is on disk too.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Workdir(Closing):
    """Open workdir, made by `Workdir.open` and released by `close` or the end of a `with`.

    Attributes:
      path: the directory.
      resumed: whether an earlier process had already started this run.
    """

    def __init__(self, path: Path, resumed: bool):
        self.path = path
        self.resumed = resumed

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        ignore: Collection[str] = ('workdir',),
        beside: Collection[Path] = (),
    ) -> Self:
        """Opens the workdir of a new run in a new or empty directory, or of a run to resume.

        Args:
          path: the directory; made, with its parents, if it does not exist.
          config: the run's settings, values that JSON can hold (an ml_collections ConfigDict will
              do).
          ignore: dotted names of fields that may differ when a run resumes, because they do not
            change its result; a name covers all fields below it.
          beside: workdirs whose files the run reads too, those of processes of earlier starts; where
            they are of any run, it must be this one.

        Returns:
          The open directory, locked against other processes.

        Raises:
          UserError: another process is using the directory, it or one beside it belongs to a run
            with other settings, it holds files but no run, or it cannot be made or written.
        """
        path = Path(path).resolve()
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_strangers(path)
            _lock(path)
        except OSError as error:
            raise UserError(f'The workdir {path} cannot be used: {error.strerror}.') from None
        try:
            for other in beside:
                if (other / 'config.json').exists():
                    _refuse_other_run(other, config, ignore)
            return cls(path, _settle_config(path, config, ignore))
        except BaseException:
            _unlock(path)
            raise

    def __truediv__(self, name: str) -> Path:
        """Path of a file in the directory: ``workdir / 'summary.json'``."""
        return self.path / name

    def close(self) -> None:
        """Lets other processes use the directory; a second call does nothing."""
        if self.path in _held:
            _unlock(self.path)

    def stage_done(self, name: str) -> bool:
        """Whether the stage called `name` was marked done, now or by an earlier process."""
        return self._marker(name).exists()

    def mark_done(self, name: str, result: Mapping[str, Any] | None = None) -> None:
        """Marks a stage as done, with a result for later stages; atomic.

        Args:
          name: the stage, in letters, digits, '-' and '_'.
          result: values that JSON can hold, for `stage_result`.

        Raises:
          ValueError: a name with other characters, or a result that JSON cannot hold.
        """
        marker = self._marker(name)
        marker.parent.mkdir(exist_ok=True)
        content = {'stage': name, 'finished': time.time(), 'result': dict(result or {})}
        atomic_write(marker, _json(content, f'The result of stage {name}'))

    def stage_result(self, name: str) -> dict[str, Any]:
        """Result of a stage, as given to `mark_done`.

        Raises:
          KeyError: the stage is not done.
        """
        if not self.stage_done(name):
            raise KeyError(f'Stage {name} is not done in {self.path}.')
        return json.loads(self._marker(name).read_text())['result']

    def _marker(self, name: str) -> Path:
        if not name or not all(c.isalnum() or c in '-_' for c in name):
            raise ValueError(
                f"A stage's name is made of letters, digits, '-' and '_', got {name!r}."
            )
        return self.path / 'stages' / f'{name}.json'


def is_held(path: Path) -> bool:
    """Whether a living process has a workdir open, as far as its lock tells; nothing is written."""
    if path.resolve() in _held:
        return True
    try:
        holder = parse_claim((path / '.lock').read_text())
        if holder and holder['host'] != socket.gethostname():
            return time.time() - (path / '.lock').stat().st_mtime < STALE_S
    except OSError:
        return False
    return holder is not None and alive(holder)


def _json(content: Any, subject: str) -> str:
    try:
        return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + '\n'
    except (TypeError, ValueError) as error:
        raise ValueError(f'{subject} cannot be written as JSON: {error}.') from None


def _refuse_strangers(path: Path) -> None:
    """Raises for a directory with visible files but no run, before anything is written to it."""
    strangers = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith('.'))
    if strangers and not (path / 'config.json').exists():
        raise UserError(
            f'The workdir {path} holds {strangers[0]} but no run (no config.json): '
            'name a new or empty directory.'
        )


def _settle_config(path: Path, config: Mapping[str, Any], ignore: Collection[str]) -> bool:
    """Writes config.json at the first start, compares it later; returns whether it existed."""
    text, file = _config_text(config), path / 'config.json'
    for directory in (path, path / 'stages'):
        for leftover in directory.glob('.*.tmp'):
            leftover.unlink(missing_ok=True)
    if not file.exists():
        atomic_write(file, text)
        return False
    _refuse_other_run(path, config, ignore)
    return True


def _config_text(config: Mapping[str, Any]) -> str:
    config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
    return _json(config, 'The configuration')


def _refuse_other_run(path: Path, config: Mapping[str, Any], ignore: Collection[str]) -> None:
    """Raises for a workdir that belongs to a run with other settings."""
    file = path / 'config.json'
    try:
        before = flat(json.loads(file.read_text()))
    except ValueError:
        raise UserError(f"{file} is not a run's configuration: name another workdir.") from None
    now = flat(json.loads(_config_text(config)))
    for name in sorted(before.keys() | now.keys()):
        if any(name == ignored or name.startswith(ignored + '.') for ignored in ignore):
            continue
        if (name in before) != (name in now) or before.get(name) != now.get(name):
            there, here = (
                repr(fields[name]) if name in fields else 'not set' for fields in (before, now)
            )
            raise UserError(
                f'The workdir {path} belongs to another run: {name} is {there} there and {here} here; '
                'use the same settings or another workdir.'
            )


def flat(value: Any, prefix: str = '') -> dict[str, Any]:
    """Values by dotted names of nested dictionaries, of which empty ones are values."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    result: dict[str, Any] = {}
    for name, inner in value.items():
        result |= flat(inner, f'{prefix}.{name}' if prefix else name)
    return result


def _lock(path: Path) -> None:
    """Locks the directory by its .lock file, taking over the lock of a dead process."""
    if path in _held:
        raise ValueError(f'The workdir {path} is already open in this process.')
    claim = own_claim()
    with open(path / '.lock', 'a+') as file:
        # The kernel lock protects reading and writing of the claim. The claim itself is text,
        # because a kernel lock, such as the one of the filelock package, would outlive a killed
        # process in its forked children.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        holder = parse_claim(file.read())
        if holder and holder != claim:
            silent_s = _silent_s(path)
            if holder['host'] != claim['host'] and silent_s < STALE_S:
                raise UserError(
                    f'The workdir {path} is in use by process {holder["pid"]} on {holder["host"]}, alive {silent_s:.0f} s '  # noqa: E501
                    f'ago; if that one is dead, start again after {STALE_S / 60:.0f} minutes without a sign of it, or '
                    f'remove {path / ".lock"}.'
                )
            if holder['host'] != claim['host']:
                print(
                    f'The workdir {path} was in use by process {holder["pid"]} on {holder["host"]}, without a sign of '
                    f'life for {silent_s / 60:.0f} minutes; this run takes it over.',
                    file=sys.stderr,
                )
            elif alive(holder):
                raise UserError(
                    f'The workdir {path} is in use by process {holder["pid"]}: wait for it or stop it.'
                )
        file.seek(0)
        file.truncate()
        file.write(json.dumps(claim))
    _held[path] = threading.Event()
    threading.Thread(target=_beat, args=(path / '.lock', _held[path]), daemon=True).start()


def _beat(lock: Path, end: threading.Event) -> None:
    """Heartbeat: touches the lock, so that other hosts see that the run is alive."""
    while not end.wait(BEAT_S):
        try:
            os.utime(lock)
        except OSError:
            pass  # the file system may be away for a while; so may the run's other files


def _silent_s(path: Path) -> float:
    """Seconds since the last heartbeat of the lock, by the clock of its file system."""
    now = path / f'.now.{os.getpid()}.tmp'
    now.touch()
    try:
        return max(0.0, now.stat().st_mtime - (path / '.lock').stat().st_mtime)
    finally:
        now.unlink(missing_ok=True)


def _unlock(path: Path) -> None:
    _held.pop(path).set()
    # Emptied, not removed: a process waiting for the old file's lock would claim a file no other
    # can see.
    if path.exists():
        (path / '.lock').write_text('')


def own_claim() -> dict[str, Any]:
    """Claim of this process, as a lock file has it."""
    return {'pid': os.getpid(), 'host': socket.gethostname(), 'started': _start_time(os.getpid())}


def parse_claim(text: str) -> dict[str, Any] | None:
    """Claim in a lock file, None for an empty or incomplete one (its writer was killed)."""
    try:
        claim = json.loads(text)
        return (
            claim if isinstance(claim['pid'], int) and claim.keys() >= {'host', 'started'} else None
        )
    except (ValueError, TypeError, KeyError):
        return None


def alive(claim: Mapping[str, Any]) -> bool:
    """Whether the claiming process still runs, and not a later one with the same number."""
    if claim['pid'] == os.getpid():
        # not in _held, so this number was our predecessor's (as after a container's restart)
        return False
    try:
        os.kill(claim['pid'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return claim['started'] is None or claim['started'] == _start_time(claim['pid'])


def _start_time(pid: int) -> int | None:
    """Start time of a process in ticks since boot; None for an ended one, or without /proc."""
    try:
        # The second field, the name in brackets, may hold spaces and brackets itself.
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return None if fields[0] in 'ZX' else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
