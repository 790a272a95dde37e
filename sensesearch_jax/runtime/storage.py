"""Workdirs, policies and trajectories in an object store (gs://, s3://).

A store has no appends, no locks and no folders that are renamed at once, all of which a run that
survives any kill lives on. So it works in a local folder that a thread keeps the store like: every
few seconds it uploads what is new and deletes what is gone. A file in the store is the old one or the
new one. Those that vouch for others (a stage's marker, a checkpoint's metadata, a policy's weights)
are uploaded behind them, so that whenever the machine is lost, what the store holds is a state that
a killed run could have left. A start fetches it; what an earlier start left in the local folder alone
is sampled or computed again, and comes out as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.closing import Closing
from sensesearch_jax.runtime.workdir import (
    BEAT_S,
    STALE_S,
    alive,
    atomic_write,
    own_claim,
    parse_claim,
)

EXTRAS = {'gs': 'gcs', 's3': 's3'}
"""Schemes of the stores that a workdir may be in, with the package's extra that each needs."""

PUSH_S = 10.0
"""Seconds between two uploads of what is new."""

THREADS = 8  # files that are transferred at a time
FETCHED = '.fetched.json'  # in a folder of inputs: the version of each of its files
PICTURES = 'tools/images/'
CHECKPOINT = '_CHECKPOINT_METADATA'  # orbax writes it last


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address in a store, and no path."""
    return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', os.fspath(path)))


@contextlib.contextmanager
def local_workdir(path: str, scratch: str) -> Iterator[str]:
    """The local folder of a workdir, which for one in a store is its mirror within `with`.

    Args:
        path: the workdir, a path or an address.
        scratch: the config's, see `local_folder`.

    Raises:
        UserError: another process is using it, or the store cannot be reached.
    """
    if not is_address(path):
        yield path
        return
    with Mirror(path, local_folder(path, scratch)) as mirror:
        print(f'{path} is worked on in {mirror.folder}.', file=sys.stderr)
        yield str(mirror.folder)


def local_input(address: str, scratch: str) -> str:
    """Path of a local copy of a file or folder in a store, which is fetched where it is not there.

    Args:
        address: of the file or folder; a path is its own copy.
        scratch: the config's, see `local_folder`.

    Raises:
        UserError: there is nothing at the address, or the store cannot be reached.
    """
    if not is_address(address):
        return address
    store, root = _open(address)
    folder = local_folder(address, scratch)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:  # other runs of this machine want it as well
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _listed(store, root)
        if not found:
            raise UserError(f'There is nothing at {address}; look at the address.')
        note = folder / FETCHED
        there = json.loads(note.read_text()) if note.is_file() else {}
        versions = {name: _version(info) for name, info in found.items()}
        missing = [name for name, version in versions.items() if there.get(name) != version]
        gone = there.keys() - versions.keys()
        if missing or gone:
            note.unlink(missing_ok=True)  # until all is there again
            for name in gone:
                (folder / name).unlink(missing_ok=True)
            _download(store, root, folder, missing)
            atomic_write(note, json.dumps(versions))
    only = Path(root).name  # of a file, whose listing is the file itself
    return str(folder / only if list(found) == [only] and store.isfile(root) else folder)


def local_folder(address: str, scratch: str) -> Path:
    """Folder that an address is worked on in.

    Args:
        address: in a store.
        scratch: folder of all such folders; '' is in the user's cache directory.
    """
    root = Path(scratch or os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    root = root if scratch else root / 'sensesearch_jax' / 'scratch'
    return root.resolve() / re.sub(r'[^A-Za-z0-9.-]+', '_', address.rstrip('/'))


class Mirror(Closing):
    """A local folder, and the store that is kept like it, locked against other processes.

    Args:
        address: of the folder in the store.
        folder: the local one; what it holds is replaced by what the store holds.

    Raises:
        UserError: another process is using it, or the store cannot be reached.
    """

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder
        self._store, self._root = _open(address)
        self._claim = own_claim()
        with _reaching(address):
            self._lock()
            self._pushed: dict[str, tuple[int, int]] = {}  # file -> its size and time when uploaded
            self._fetch()
        self._beat = time.monotonic()
        self._pushing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name='mirror')
        self._thread.start()

    def push(self) -> None:
        """Makes the store like the folder.

        Where a file is gone before it could be read, nothing is deleted this time: it may have been
        part of a checkpoint that a deleted one was to give way to.
        """
        with self._pushing:
            # Markers are listed before what they vouch for, and uploaded after it.
            files = dict.fromkeys([*_files(self.folder, 'stages'), *_files(self.folder, '')])
            stats = {name: stat for name in files if (stat := _stat(self.folder, name))}
            new = [name for name, stat in stats.items() if self._pushed.get(name) != stat]
            gone = [name for name in self._pushed if name not in files]
            complete = len(stats) == len(files)
            with ThreadPoolExecutor(THREADS) as pool:
                for rank in sorted(set(map(_rank, new))):
                    part = [name for name in new if _rank(name) == rank]
                    for name, done in zip(part, pool.map(self._upload, part)):
                        complete &= done
                        if done:
                            self._pushed[name] = stats[name]
            for name in sorted(gone, key=_rank, reverse=True) if complete else ():
                self._store.rm_file(f'{self._root}/{name}')
                del self._pushed[name]

    def close(self) -> None:
        """Uploads what is left and lets other processes use the store's folder."""
        self._ended.set()
        self._thread.join()
        with _reaching(self.address):
            self.push()
            self._store.pipe_file(f'{self._root}/.lock', b'')

    def _run(self) -> None:
        while not self._ended.wait(PUSH_S):
            try:
                self.push()
                if time.monotonic() - self._beat > BEAT_S:
                    self._write_claim()
            except Exception as error:  # of whatever kind the library has; it is tried again
                print(
                    f'sensesearch_jax: {self.address} cannot be written now and is tried again in {PUSH_S:.0f} s: '
                    f'{error}',
                    file=sys.stderr,
                )

    def _upload(self, name: str) -> bool:
        """Uploads a file; whether it was there."""
        try:
            self._store.put_file(str(self.folder / name), f'{self._root}/{name}')
        except FileNotFoundError:
            if (self.folder / name).exists():
                raise  # it is the store's folder that is missing
            return False
        return True

    def _fetch(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        found = [name for name in _listed(self._store, self._root) if not _hidden(name)]
        steps = {name.rpartition('/')[0] for name in found if name.endswith(f'/{CHECKPOINT}')}
        torn = [name for name in found if (step := _step_of(name)) and step not in steps]
        for name in torn:
            self._store.rm_file(f'{self._root}/{name}')
        wanted = [name for name in found if name not in set(torn) and _needed(name, steps)]
        _download(self._store, self._root, self.folder, wanted)
        self._pushed = {name: _stat(self.folder, name) for name in wanted}

    def _lock(self) -> None:
        holder = self._holder()
        if holder and {name: holder.get(name) for name in self._claim} != self._claim:
            silent_s = max(0.0, time.time() - holder.get('time', 0.0))
            here = holder['host'] == self._claim['host']
            if alive(holder) if here else silent_s < STALE_S:
                raise UserError(
                    f'The workdir {self.address} is in use by process {holder["pid"]} on {holder["host"]}, alive '
                    f'{silent_s:.0f} s ago; if that one is dead, start again after {STALE_S / 60:.0f} minutes without '
                    f'a sign of it, or remove {self.address}/.lock.'
                )
        self._write_claim()
        time.sleep(1.0)  # in which another one that saw no claim either has written its own
        if not (holder := self._holder()) or holder['pid'] != self._claim['pid']:
            raise UserError(f'The workdir {self.address} was taken by another process just now.')

    def _write_claim(self) -> None:
        self._beat = time.monotonic()
        claim = self._claim | {'time': time.time()}
        self._store.pipe_file(f'{self._root}/.lock', json.dumps(claim).encode())

    def _holder(self) -> dict[str, Any] | None:
        try:
            self._store.invalidate_cache()
            return parse_claim(self._store.cat_file(f'{self._root}/.lock').decode())
        except FileNotFoundError:
            return None


def _open(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = address.partition('://')[0]
    try:
        store, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{address} needs pip install 'sensesearch_jax[{EXTRAS.get(scheme, scheme)}]': {error}"
        ) from None
    return store, root.rstrip('/')


@contextlib.contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Within it, an error of the store becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # stores' libraries have no common one
        raise UserError(
            f'{address} cannot be reached: {type(error).__name__}: {error}; see to the credentials, the bucket and '
            'the network.'
        ) from error


def _listed(store: fsspec.AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """The files below a folder of a store, or the one file, by their names from there on."""
    with _reaching(store.unstrip_protocol(root)):
        store.invalidate_cache()
        found = store.find(root, detail=True)
    return {
        name[len(root) :].lstrip('/') or Path(root).name: info
        for name, info in found.items()
        if info['type'] == 'file'
    }


def _version(info: dict[str, Any]) -> str:
    names = 'size', 'ETag', 'etag', 'LastModified', 'updated', 'mtime', 'created'
    return ' '.join(str(info[name]) for name in names if name in info)


def _download(
    store: fsspec.AbstractFileSystem, root: str, folder: Path, names: Iterable[str]
) -> None:
    def one(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        whole = Path(root).name == name and store.isfile(root)
        store.get_file(root if whole else f'{root}/{name}', str(folder / name))

    with _reaching(store.unstrip_protocol(root)), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, names))


def _files(folder: Path, part: str) -> Iterator[str]:
    """The files below a part of a folder that belong into the store, by their names."""
    for path, folders, names in os.walk(folder / part):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            if not _hidden(name):
                yield os.path.relpath(os.path.join(path, name), folder)


def _hidden(name: str) -> bool:
    """Whether a file is a lock, or not yet in its place."""
    return name.endswith('.partial') or any(
        part.startswith('.') or 'orbax-checkpoint-tmp' in part for part in name.split('/')
    )


def _stat(folder: Path, name: str) -> tuple[int, int] | None:
    """Size and time of a file, by which a change is seen; None if it is gone."""
    try:
        stat = (folder / name).stat()
    except FileNotFoundError:
        return None
    # A picture has the name of its content; its time is renewed by every use.
    return stat.st_size, 0 if PICTURES in name else stat.st_mtime_ns


def _rank(name: str) -> int:
    """Place in the order of uploads: what vouches for others comes after them."""
    last = name.rpartition('/')[2]
    if name.startswith('stages/'):
        return 3
    return 2 if last == CHECKPOINT else int(last.startswith('model.safetensors'))


def _step_of(name: str) -> str:
    """The checkpoint's folder that a file is in, or ''."""
    found = re.match(r'(.*/)?checkpoints/\d+(?=/)', name)
    return found[0] if found else ''


def _needed(name: str, steps: Iterable[str]) -> bool:
    """Whether a run that goes on reads a file: not the trajectories of the steps that are made, but
    for the last, which its report shows.
    """
    found = re.fullmatch(r'(.*)/trajectories/(\d+)\.jsonl', name)
    made = [int(s.rpartition('/')[2]) for s in steps if found and s.startswith(f'{found[1]}/')]
    return not found or int(found[2]) >= max(made, default=0) - 1
