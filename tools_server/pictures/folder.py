"""Picture files in a folder, by content hash, within a size limit.

What was used longest ago goes first, but nothing that was used within the last hours: that is how a
run that is alive is known, also to another server with the same folder, since every use renews the
file's time. When all of it is in use the folder takes no more.

On disk: the file and, beside it, what is known of it as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tools_server.config import ConfigError
from tools_server.failures import ToolError

SHARE_LEFT = 0.9  # of the limit, after old files were removed
SCAN_S = 600.0  # other servers may write into the folder too: it is measured again after so long
PAUSE_S = 5.0  # between two searches for files to remove, while all are in use
PART = '.part-'  # what a file is called while it is written
PART_S = 3600.0  # one that is older was left behind by a process that was killed


class _File(NamedTuple):
    used: float
    bytes: int
    path: Path


class PictureFolder:
    """Files by hash. Safe to share between threads, and its folder between processes.

    Args:
        directory: the folder; None: a temporary one, removed by `close`.
        max_bytes: limit of all files together.
        keep_s: a file used within so many seconds is never removed.

    Raises:
        ConfigError: nothing can be written there.
    """

    def __init__(self, directory: Path | None, max_bytes: int, keep_s: float):
        self._temporary = None
        try:
            if directory is None:
                self._temporary = tempfile.TemporaryDirectory(prefix='tools_server_')
                directory = Path(self._temporary.name)
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=directory, prefix=PART):
                pass
        except OSError as error:
            raise ConfigError(
                f'images.directory: {directory} cannot be used: {error.strerror}; give a folder to write to'
            ) from None
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._bytes = 0
        self._measured = -SCAN_S
        self._scanning = threading.Lock()
        self.removed = 0  # files that went to make room

    def close(self) -> None:
        """Removes the folder if it is a temporary one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def has(self, sha256: str) -> bool:
        """Whether a file and what is known of it are there; counts as a use."""
        path = self._path(sha256)
        try:
            age = time.time() - path.stat().st_mtime
            path.with_suffix('.json').stat()
            if age > min(60.0, self._keep_s / 10):
                with contextlib.suppress(PermissionError):  # another user's, who renews it
                    os.utime(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EROFS:  # where nothing is written nothing is removed either
                raise self._unusable(error) from None
        return True

    def read(self, sha256: str) -> bytes:
        """A file.

        Raises:
            ToolError: 'caller' with status 404; it is not there.
        """
        try:
            return self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise absent(sha256) from None
        except OSError as error:
            raise self._unusable(error) from None

    def record(self, sha256: str) -> dict[str, Any]:
        """The record of a file: its size and origin.

        Raises:
            ToolError: 'caller' with status 404; it is not there.
        """
        if not self.has(sha256):
            raise absent(sha256)
        try:
            return json.loads(self._path(sha256).with_suffix('.json').read_text())
        except (FileNotFoundError, ValueError):
            raise absent(sha256) from None
        except OSError as error:
            raise self._unusable(error) from None

    def write(self, sha256: str, data: bytes, record: dict[str, Any]) -> None:
        """Keeps a file and its record.

        Args:
            sha256: hash of the file.
            data: the file.
            record: JSON-able; `record` gives it back.

        Raises:
            ToolError: 'unavailable'; there is no room, or it cannot be written.
        """
        about = json.dumps(record).encode()
        self._make_room(len(data) + len(about))
        path = self._path(sha256)
        try:
            path.parent.mkdir(exist_ok=True)
            _write_whole(path, data)
            _write_whole(path.with_suffix('.json'), about)
        except OSError as error:
            raise self._unusable(error) from None
        with self._lock:
            self._bytes += len(data) + len(about)

    def statistics(self) -> dict[str, int]:
        """Bytes that the files take, and files that were removed to make room."""
        return {'bytes': self._bytes, 'removed': self.removed}

    def _make_room(self, size: int) -> None:
        since = time.monotonic() - self._measured
        if since >= SCAN_S or (self._bytes + size > self._max_bytes and since >= PAUSE_S):
            if self._scanning.acquire(blocking=self._bytes + size > self._max_bytes):
                try:
                    if time.monotonic() - self._measured >= min(since, PAUSE_S):
                        self._remove_old(size)
                finally:
                    self._scanning.release()
        if self._bytes + size > self._max_bytes:
            hours = f'{self._keep_s / 3600:.3g} hours'
            raise ToolError(
                'unavailable',
                f'the folder of images is full of images used within the last {hours}; raise images.folder_bytes',
            )

    def _remove_old(self, size: int) -> None:
        """Measures the folder, and removes what was used longest ago where it is over its limit."""
        files = sorted(self._files())
        total = sum(file.bytes for file in files)
        now = time.time()
        wanted = self._max_bytes * SHARE_LEFT - size if total + size > self._max_bytes else total
        for file in files:
            if total <= wanted or now - file.used < self._keep_s:
                break
            with contextlib.suppress(FileNotFoundError):  # another server was faster
                if time.time() - file.path.stat().st_mtime >= self._keep_s:  # not used meanwhile
                    # First what is known of it: a picture without that counts as absent everywhere.
                    file.path.with_suffix('.json').unlink(missing_ok=True)
                    file.path.unlink()
                    total -= file.bytes
                    self.removed += 1
        with self._lock:
            self._bytes = total
            self._measured = time.monotonic()

    def _files(self) -> Iterator[_File]:
        """All pictures, each with the bytes of its record."""
        for folder in os.scandir(self._directory):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.startswith(PART):
                        if time.time() - entry.stat().st_mtime > PART_S:
                            os.unlink(entry.path)
                    elif not entry.name.endswith('.json'):
                        about = entry.stat()
                        yield _File(about.st_mtime, about.st_size + 100, Path(entry.path))

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    def _unusable(self, error: OSError) -> ToolError:
        return ToolError('unavailable', f'the folder of images cannot be used: {error.strerror}')


def absent(sha256: str) -> ToolError:
    """The failure of a call that names a picture which is not here."""
    return ToolError('caller', f'there is no image {sha256}; upload it first', 404)


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there in full or not at all, whoever else writes the same."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
