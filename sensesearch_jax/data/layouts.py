"""Layouts of data: which files a path stands for, and which split each of them belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from sensesearch_jax.data.names import latest_version
from sensesearch_jax.errors import UserError

SUFFIXES = '.jsonl', '.json', '.parquet', '.arrow'
METADATA = 'metadata.jsonl', 'metadata.parquet'  # of a folder of images, as the Hub has it
IGNORED = 'dataset_infos.json', 'dataset_info.json', 'state.json', 'config.json'

# Names of splits in names of files and folders, as the Hub reads them.
_SPLITS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'valid', 'val', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}
_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_SHARD = re.compile(r'(.+?)-\d{5}-of-\d{5}')


class File(NamedTuple):
    """A part of a source.

    Args:
        path: of a file, or of a tensorflow-datasets directory.
        split: that it belongs to; '' where nothing says so.
        kind: 'jsonl', 'json', 'parquet', 'arrow' or 'tfds'.
        images: the folder of an image folder's pictures, which rows name by `file_name`; None
            elsewhere.
    """

    path: epath.Path
    split: str
    kind: str
    images: epath.Path | None = None


def files_of(path: str) -> list[File]:
    """All files of a source, in order.

    Args:
        path: a file, a glob of files, or a directory.

    Raises:
        UserError: there is nothing there, or it is in none of the layouts.
    """
    if any(sign in path for sign in '*?[') and not epath.Path(path).exists():
        return _matching(path)
    root = epath.Path(path)
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise UserError(
                f'{path} is none of {", ".join(SUFFIXES)}; docs/data.md has the layouts.'
            )
        return [File(root, '', root.suffix[1:])]
    if not root.is_dir():
        raise UserError(f'There is no file or directory {path}.')
    return _of_directory(root)


def chosen_split(path: str, files: Sequence[File], split: str, usual: str) -> list[File]:
    """The files of one split.

    Args:
        path: of the source, for messages.
        files: all of it.
        split: the wanted one; '' is the only one, or else `usual`.
        usual: '' for none.

    Raises:
        UserError: there is no such split, or several and none was asked for.
    """
    splits = sorted({file.split for file in files} - {''})
    if split and not splits:
        raise UserError(f'{path} has no splits; leave out {split!r}.')
    if split and split not in splits:
        raise UserError(f'{path} has no split {split!r}; it has {", ".join(splits)}.')
    if not split and len(splits) > 1:
        if usual not in splits:
            raise UserError(
                f'{path} has the splits {", ".join(splits)}; name one, as in {path}@{splits[0]}.'
            )
        split = usual
    return [file for file in files if not split or file.split == split]


def _matching(pattern: str) -> list[File]:
    parent, _, name = pattern.rpartition('/')
    while any(sign in parent for sign in '*?['):
        parent, _, last = parent.rpartition('/')
        name = f'{last}/{name}'
    root = epath.Path(parent or '.')
    found = sorted(root.glob(name)) if root.is_dir() else []
    files = [File(path, '', path.suffix[1:]) for path in found if path.suffix in SUFFIXES]
    if not files:
        raise UserError(f'No file matches {pattern}; files are {", ".join(SUFFIXES)}.')
    return files


def _of_directory(root: epath.Path) -> list[File]:
    if (root / 'dataset_dict.json').exists():
        splits = json.loads((root / 'dataset_dict.json').read_text())['splits']
        return [file for split in splits for file in _saved(root / split, split)]
    if (root / 'state.json').exists():
        return _saved(root, '')
    if not (root / 'features.json').exists():
        root = latest_version(root) or root
    if (root / 'features.json').exists():
        infos = json.loads((root / 'dataset_info.json').read_text())
        return [File(root, split['name'], 'tfds') for split in infos['splits']]
    paths = [p for p in _walk(root) if p.suffix in SUFFIXES and p.name not in IGNORED]
    if metadata := [path for path in paths if path.name in METADATA]:
        paths = metadata
    files = [
        File(
            path,
            _split_of(str(path)[len(str(root)) :]),
            path.suffix[1:],
            path.parent if path.name in METADATA else None,
        )
        for path in paths
    ]
    if not files:
        raise UserError(
            f'{root} holds no {", ".join(SUFFIXES)} files and is no tensorflow-datasets directory; '
            'docs/data.md has the layouts.'
        )
    return files


def _saved(folder: epath.Path, split: str) -> list[File]:
    """The files of a directory that `datasets.save_to_disk` wrote."""
    state = json.loads((folder / 'state.json').read_text())
    return [File(folder / f['filename'], split, 'arrow') for f in state['_data_files']]


def _walk(folder: epath.Path) -> list[epath.Path]:
    """All files below a folder that are not hidden, in order."""
    found: list[epath.Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(('.', '_')):
            continue
        found += _walk(path) if path.is_dir() else [path]
    return found


def _split_of(path: str) -> str:
    """The split that a path within a source names: data/train-00000-of-00002.parquet, test/a.jsonl."""
    *folders, name = path.strip('/').split('/')
    stem = name.rpartition('.')[0]
    if shard := _SHARD.fullmatch(stem):
        return _OF_WORD.get(shard.group(1), shard.group(1))
    for part in (stem, *reversed(folders)):
        for word in re.split(r'[^a-z0-9]+', part.lower()):
            if word in _OF_WORD:
                return _OF_WORD[word]
    return ''
