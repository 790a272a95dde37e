"""Answers and small files in one SQLite file, safe when killed at any moment and shared by
processes.

SQLite's write-ahead log gives both: a transaction is in the file whole or not at all, readers never
wait for a writer, and writers of other processes wait for each other. What `put` has returned from
is there after a kill -9 of the process (after a power failure the last moments may be missing,
never the file's consistency).
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools_server.response_cache.reader import BUSY_S, SKEW_S, Entry, Reader, StoreError, errors

TOUCH_S = 300.0  # a use is noted only if the last one is older: reading should not mean writing
KEPT_SHARE = 0.9  # of the size limit, after making room

# Triggers keep the totals, so that neither the limit nor the statistics cost a scan of the table.
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  key TEXT PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL, made REAL NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
CREATE TABLE IF NOT EXISTS total (
  one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER NOT NULL, bytes INTEGER NOT NULL
);
INSERT OR IGNORE INTO total VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON entries BEGIN
  UPDATE total SET entries = entries + 1, bytes = bytes + new.size; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON entries BEGIN
  UPDATE total SET entries = entries - 1, bytes = bytes - old.size; END;
PRAGMA user_version = 1;
"""


class AnswerStore(Reader):
    """Bytes by key, with expiry and a size limit. Safe to share between threads and processes.

    Reading and writing have a connection each, so that no reader waits for a writer.

    Args:
        path: of the SQLite file, made if it is not there.
        max_bytes: summed size of keys and values above which the entries used longest ago go; None:
            no limit.
        max_age_s: age in seconds from which an entry is no longer there; None: it stays.
        wait_s: longest time that a look at the file may wait for others, in seconds.
        clock: seconds since the epoch.

    Raises:
        StoreError: the file cannot be opened, or is none of ours.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        wait_s: float = BUSY_S,
        clock: Callable[[], float] = time.time,
    ):
        self._max_bytes = max_bytes
        self._write_lock = threading.Lock()  # of the connection that writes
        with errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = sqlite3.connect(
                path, BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._prepare(path)
            connection = sqlite3.connect(
                path, wait_s, isolation_level=None, check_same_thread=False
            )
        max_age_s = math.inf if max_age_s is None else max_age_s
        super().__init__(path, connection, wait_s, max_age_s, clock)

    def _prepare(self, path: Path) -> None:
        run = self._writer.execute
        # both looks see one moment: another process may be making the tables between them
        run('BEGIN')
        version = run('PRAGMA user_version').fetchone()[0]
        tables = run('SELECT count(*) FROM sqlite_master').fetchone()[0]
        run('COMMIT')
        if version == 0 and tables:
            raise StoreError(f'{path} is a database of something else')
        if version == 0:
            run('PRAGMA auto_vacuum = INCREMENTAL')
        # Several processes that start at once wait for each other here as everywhere.
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                run('PRAGMA journal_mode = WAL')
                break
            except sqlite3.OperationalError as error:
                if 'locked' not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        run('PRAGMA synchronous = NORMAL')
        run(f'PRAGMA journal_size_limit = {2**24}')
        self._writer.executescript(f'BEGIN IMMEDIATE;{SCHEMA}COMMIT;')

    def worth_noting(self, entry: Entry) -> bool:
        """Whether the use of an entry is to be written down; one in the future: a wrong clock."""
        return self._max_bytes is not None and not -SKEW_S <= entry.unused_s <= TOUCH_S

    def touch(self, key: str) -> None:
        """Notes that an entry was used.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._write_lock, errors(self.path):
            self._writer.execute('UPDATE entries SET used = ? WHERE key = ?', (self.clock(), key))

    def put(self, key: str, value: bytes, *, replace: bool = True) -> None:
        """Keeps a value; once this returns it survives the process.

        Args:
            key: any text.
            value: its bytes.
            replace: whether it takes the place of a value that is there already.

        Raises:
            StoreError: the file cannot be written.
        """
        size = len(key) + len(value)
        if self._max_bytes is not None and size > KEPT_SHARE * self._max_bytes:
            return
        now = self.clock()
        with self._write_lock, errors(self.path), self._transaction() as run:
            if replace:
                # by hand: REPLACE fires no delete trigger
                run('DELETE FROM entries WHERE key = ?', (key,))
            run(
                'INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)', (key, value, size, now, now)
            )
            if self._max_bytes is not None:
                self._make_room(run, now)

    def _make_room(self, run: Callable[..., sqlite3.Cursor], now: float) -> None:
        total = run('SELECT bytes FROM total').fetchone()[0]
        if total <= self._max_bytes:
            return
        gone = []
        # A use in the future, of a clock set ahead, says nothing and must not keep an entry for
        # ever.
        for order in ('used > ?', 'used <= ?'):
            for key, size in run(
                f'SELECT key, size FROM entries WHERE {order} ORDER BY used', (now + SKEW_S,)
            ):
                if total <= KEPT_SHARE * self._max_bytes:
                    break
                gone.append((key,))
                total -= size
        for row in gone:
            run('DELETE FROM entries WHERE key = ?', row)
        run(
            'PRAGMA incremental_vacuum'
        ).fetchall()  # works in steps, one per page that is given back

    def close(self) -> None:
        """Closes the file; using the store afterwards is a StoreError."""
        super().close()
        with self._write_lock:
            self._writer.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        run = self._writer.execute
        run('BEGIN IMMEDIATE')
        try:
            yield run
            run('COMMIT')
        except BaseException:
            if self._writer.in_transaction:
                run('ROLLBACK')
            raise
