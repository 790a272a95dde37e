"""Sources that are known by name: generated worlds, and published sets that were converted."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

from etils import epath

from sensesearch_jax.data import published
from sensesearch_jax.errors import UserError

# name -> module with `questions`, `check_source` and `prepare`; by name, since no room imports the demo.
GENERATED = {
    'pocket': 'sensesearch_jax.pocket.world.question_sets',
    'invented': 'sensesearch_jax.pocket.invented.question_sets',
}
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def known_names() -> tuple[str, ...]:
    """All names."""
    return *GENERATED, *published.NAMES


def generator(name: str) -> Any:
    """The module that makes a generated source's questions."""
    return importlib.import_module(GENERATED[name])


def converted(name: str, folder: str) -> str:
    """The tensorflow-datasets directory of a published set, of its latest version.

    Args:
        name: of the set.
        folder: of converted sets; '' is that of tensorflow-datasets.

    Raises:
        UserError: the set was not converted.
    """
    where = epath.Path(folder or default_folder())
    if (found := latest_version(where / name)) is None:
        raise UserError(
            f'{name} is not in {where}: there is no {where / name}. Convert it from its published files with '
            f'`python -m sensesearch_jax.data.convert {name} FILES {where}`, or say with data.dir where it is.'
        )
    return str(found)


def latest_version(folder: epath.Path) -> epath.Path | None:
    """The tensorflow-datasets directory within the folder of a set; None if there is none."""
    if not folder.is_dir():
        return None
    versions = [
        (tuple(map(int, path.name.split('.'))), path)
        for path in folder.iterdir()
        if _VERSION.fullmatch(path.name) and (path / 'features.json').exists()
    ]
    return max(versions, key=lambda item: item[0])[1] if versions else None


def default_folder() -> str:
    """Folder in which tensorflow-datasets keeps its sets."""
    return os.environ.get('TFDS_DATA_DIR') or os.path.expanduser('~/tensorflow_datasets')
