"""The files of a policy directory replaced together: an interrupted save leaves the old policy, the
new one or none.

Everything is written into a directory within the policy's, and moved from there when all of it is
on disk. Files cannot be moved all at once: so that no mixture can be read in between, here or by
other programs, the file that weights are found by goes first and comes last.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Collection
from pathlib import Path

STAGED = '.saving'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARDS = 'model-*-of-*.safetensors'


def stage(folder: Path) -> Path:
    """An empty directory for the files of a save into `folder`; what an interrupted save left in it
    is dropped.
    """
    staged = folder / STAGED
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(parents=True)
    return staged


def put_in_place(folder: Path, outdated: Collection[str]) -> None:
    """Moves what was staged for `folder` into it, and removes weights that were there and are not
    among it.

    Other files of the folder stay. At each moment it holds the old policy, the new one, or no
    weights.

    Args:
        outdated: names of other files that go too, if they are there.
    """
    staged = folder / STAGED
    for path in [*staged.iterdir(), staged]:
        _to_disk(path)
    for path in staged.iterdir():
        is_weights = path.suffix == '.safetensors' or path.name == INDEX
        if (
            not is_weights
            and (folder / path.name).is_file()
            and filecmp.cmp(path, folder / path.name, shallow=False)
        ):
            path.unlink()
    moving = sorted(
        (path.name for path in staged.iterdir()), key=lambda name: (name in (WEIGHTS, INDEX), name)
    )
    known = (
        *folder.glob(SHARDS),
        folder / INDEX,
        folder / WEIGHTS,
        *(folder / name for name in outdated),
    )
    old = {path.name for path in known if path.exists()}
    if len(moving) > 1 or old - set(moving):  # else one file takes the place of another, at once
        for name in (INDEX, WEIGHTS):  # which is read where both are there
            (folder / name).unlink(missing_ok=True)
        _to_disk(folder)
        for name in sorted(old - {INDEX, WEIGHTS} - set(moving)):
            (folder / name).unlink()
    for name in moving:
        if name == moving[-1]:
            _to_disk(folder)
        os.replace(staged / name, folder / name)
    staged.rmdir()
    _to_disk(folder)


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a directory's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
