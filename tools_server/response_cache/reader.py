"""Reading a file of answers, also one that may not be written: a recording on a read-only file
system.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

BUSY_S = 10.0  # how long to wait for another process that writes, or for another thread that reads
# an entry from further in the future was written by a clock set ahead; its age is unknown
SKEW_S = 60.0


class StoreError(Exception):
    """The file cannot be used; the message says why."""


class Entry(NamedTuple):
    """A value that is kept; `age_s` and `unused_s`: seconds since it was written and asked for."""

    value: bytes
    age_s: float
    unused_s: float


@dataclass(eq=False)
class Reader:
    """Entries of a file of answers. Safe to share between threads.

    Args:
        path: of the file, for messages.
        connection: to it.
        wait_s: longest time that a look at it may wait for others, in seconds.
        max_age_s: age in seconds from which an entry is no longer there.
        clock: seconds since the epoch.
        copy: folder that is removed when the file is closed.
    """

    path: Path
    connection: sqlite3.Connection
    wait_s: float = BUSY_S
    max_age_s: float = math.inf
    clock: Callable[[], float] = time.time
    copy: tempfile.TemporaryDirectory | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def entry(self, key: str) -> Entry | None:
        """The entry under a key; None if there is none, or it is too old.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._alone() as run:
            row = run('SELECT value, made, used FROM entries WHERE key = ?', (key,)).fetchone()
        if row is None:
            return None
        now = self.clock()
        entry = Entry(row[0], now - row[1], now - row[2])
        expires = self.max_age_s < math.inf
        return None if expires and not -SKEW_S <= entry.age_s <= self.max_age_s else entry

    def values(self, prefix: str) -> list[bytes]:
        """The values of all keys that begin so, by key.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._alone() as run:
            bounds = prefix, prefix + '\U0010ffff'
            rows = run(
                'SELECT value FROM entries WHERE key >= ? AND key < ? ORDER BY key', bounds
            ).fetchall()
        return [row[0] for row in rows]

    def statistics(self) -> dict[str, int]:
        """Entries in the file and their bytes.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._alone() as run:
            row = run('SELECT entries, bytes FROM total').fetchone()
        return {'entries': row[0], 'bytes': row[1]}

    def close(self) -> None:
        """Closes the file; using it afterwards is a StoreError."""
        with self._lock:
            self.connection.close()
            if self.copy is not None:
                self.copy.cleanup()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        if not self._lock.acquire(timeout=self.wait_s):
            raise StoreError(f'the file of answers {self.path} is busy')
        try:
            with errors(self.path):
                yield self.connection.execute
        finally:
            self._lock.release()


def open_recording(path: Path) -> Reader:
    """A file of answers that is only read, wherever it lies.

    Raises:
        StoreError: it cannot be read, or is none of ours.
    """
    with errors(path):
        try:
            return _opened(path, f'{path.absolute().as_uri()}?mode=ro')
        except sqlite3.OperationalError:
            if not path.is_file():
                raise
        # SQLite reads a file with a write-ahead log only where it can write beside it, or is told
        # that nobody writes. Then it does not look at the log either, so one with entries goes
        # elsewhere with its file.
        log = path.with_name(path.name + '-wal')
        if not log.exists() or not log.stat().st_size:
            return _opened(path, f'{path.absolute().as_uri()}?immutable=1')
        copy = tempfile.TemporaryDirectory(prefix='tools_server_')
        for file in (path, log):
            shutil.copyfile(file, Path(copy.name, file.name))
        reader = _opened(path, Path(copy.name, path.name).as_uri())
        reader.copy = copy
        return reader


def _opened(path: Path, uri: str) -> Reader:
    connection = sqlite3.connect(
        uri, BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.execute('SELECT entries FROM total').fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return Reader(path, connection)


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns what SQLite and the file system say into a sentence about the file of answers.

    Raises:
        StoreError: in place of theirs.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f'the file of answers {path} cannot be used: {error}') from None
