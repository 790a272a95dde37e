"""Append-only files of JSON objects that survive a kill at any moment."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.closing import Closing


class Journal(Closing):
    """A file of JSON objects, one a line, that grows at its end alone. Safe to share between threads.

    A last line that a kill or a power cut left torn is cut off when the file is opened. The objects
    before it are all whole.

    Args:
        path: of the file; its folder is made.
        sound: whether a last line is whole; any JSON by default.
    """

    def __init__(
        self, path: str | os.PathLike[str], sound: Callable[[bytes], bool] | None = None
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, 'a+b')
        self._write_lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._written = self._synced = 0
        self._cut_torn_line(sound or _is_json)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The objects in order.

        Raises:
            UserError: a line in the middle is none.
        """
        with open(self.path, 'rb') as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise UserError(
                        f'Line {number} of {self.path} is no JSON; restore the file from a copy, or '
                        'take another workdir.'
                    ) from None

    def append(self, value: dict[str, Any], sync: bool) -> None:
        """Writes an object at the end.

        Args:
            value: that JSON can hold.
            sync: whether to return only once it is on disk, power cuts included. Threads that wait
                at the same time share one write to disk. A killed process loses nothing either way.
        """
        line = json.dumps(value).encode() + b'\n'
        with self._write_lock:
            self._file.write(line)
            self._file.flush()
            self._written += 1
            own = self._written
        if not sync:
            return
        with self._sync_lock:
            if self._synced < own:
                written = self._written
                os.fsync(self._file.fileno())
                self._synced = written

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _cut_torn_line(self, sound: Callable[[bytes], bool]) -> None:
        self._file.seek(0)
        data = self._file.read()
        if (whole := complete_length(data, sound)) < len(data):
            self._file.truncate(whole)


def complete_length(data: bytes, sound: Callable[[bytes], bool]) -> int:
    """Bytes of a file of lines up to the end of its last one that is whole and `sound`: a kill may
    leave half a line, a power cut a line's length without its bytes.
    """
    end = data.rfind(b'\n') + 1
    start = data.rfind(b'\n', 0, max(end - 1, 0)) + 1
    return end if end == 0 or sound(data[start:end]) else start


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
