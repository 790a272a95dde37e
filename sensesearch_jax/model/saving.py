"""Atomic saves of a policy directory: an interrupted save leaves the old policy, the new one or none.

The files are written to a staging directory within the policy's, and moved when all are on disk.
They cannot be moved all at once. So that no program can read a mixture, the file that the weights
are found by is removed first and moved last.
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
    """Empty staging directory for a save into `folder`, without what an interrupted one left."""
    staged = folder / STAGED
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(parents=True)
    return staged


def put_in_place(folder: Path, outdated: Collection[str]) -> None:
    """Moves the staged files into `folder`, and deletes older weights that they do not replace.

    Other files of the folder stay. At each moment it holds the old policy, the new one, or no
    weights.

    Args:
        folder: the policy directory, see `stage`.
        outdated: names of other files to delete, if they exist.
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
    if len(moving) > 1 or old - set(moving):  # else one file replaces another, which is atomic
        for name in (INDEX, WEIGHTS):  # WEIGHTS last, since it is read where both exist
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
