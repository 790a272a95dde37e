"""Writing a cache of answers behind the calls: an answer never waits for the disk, or for who holds
the file.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from tools_server.response_cache.reader import Entry, StoreError
from tools_server.response_cache.store import AnswerStore

MOST_BYTES = 32 * 2**20  # that wait to be written
MOST_WRITES = 10_000
LOOK_S = 0.04  # longest time that a look at the file may wait
CLOSE_S = 2.0  # and that what is still to be written at the end may take
log = logging.getLogger('tools_server')


class WriteBehind:
    """A store whose `put` returns at once; one thread writes. What does not fit into its queue, or
    cannot be written, is dropped and counted: a cache may forget, and must not be waited for.

    Args:
        store: opened with `LOOK_S`, so that reading is quick as well.
    """

    def __init__(self, store: AnswerStore):
        self._store = store
        self._writes: deque[tuple[int, Callable[[], None]]] = deque()
        self._bytes = 0
        self._open = True
        self._changed = threading.Condition()
        # as far as is known: a file that is locked for an hour is one line of the log
        self._well = True
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name='answers', daemon=True)
        self._thread.start()

    def entry(self, key: str) -> Entry | None:
        """See `Reader.entry`."""
        entry = self._store.entry(key)
        if entry is not None and self._store.worth_noting(entry):
            self._later(len(key), lambda: self._store.touch(key))
        return entry

    def put(self, key: str, value: bytes, *, replace: bool = True) -> None:
        """Keeps a value soon, if it can.

        Args:
            key: any text.
            value: its bytes.
            replace: whether it takes the place of a value that is there already.
        """
        self._later(len(key) + len(value), lambda: self._store.put(key, value, replace=replace))

    def _later(self, size: int, write: Callable[[], None]) -> None:
        with self._changed:
            if (
                not self._open
                or self._bytes + size > MOST_BYTES
                or len(self._writes) >= MOST_WRITES
            ):
                self.dropped += 1
                return
            self._writes.append((size, write))
            self._bytes += size
            self._changed.notify()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._writes:
                    if not self._open:
                        return
                    self._changed.wait()
                size, write = self._writes.popleft()
                self._bytes -= size
            try:
                write()
                self._well = True
            except StoreError as error:
                self.dropped += 1
                if self._well:
                    log.error('%s; answers are not kept meanwhile', error)
                self._well = False

    def statistics(self) -> dict[str, int]:
        """Entries in the file, their bytes, and writes that were dropped.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._store.statistics() | {'dropped': self.dropped}

    def close(self) -> None:
        """Writes what waits, for two seconds at most, and closes the file."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():  # somebody holds the file; closing it would wait as long
            log.error(
                '%d answers were not kept: the file of answers is busy', len(self._writes) + 1
            )
        else:
            self._store.close()
