"""Safetensors files of a policy directory: tensors read by slices, written in files of limited
size.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.saving import INDEX, STAGED, WEIGHTS

SHARD = 'model-{:05}-of-{:05}.safetensors'


class StoredTensor(NamedTuple):
    """Tensor in an open safetensors file, not yet read."""

    file: Any
    key: str
    shape: tuple[int, ...]
    dtype: str
    swapped: bool = False

    def swapaxes(self) -> StoredTensor:
        """The tensor of three dimensions with the last two exchanged."""
        first, second, third = self.shape
        return self._replace(shape=(first, third, second), swapped=not self.swapped)

    def read(self, index: Sequence[slice] = ()) -> np.ndarray:
        """Tensor, or the slice of it that `index` gives for its leading dimensions; no other bytes
        are read.
        """
        if self.swapped:
            first, second, third = [*index, *[slice(None)] * (3 - len(index))]
            return self._replace(swapped=False).read((first, third, second)).swapaxes(1, 2)
        part = self.file.get_slice(self.key)
        return part[tuple(index)] if index else self.file.get_tensor(self.key)


class PendingTensor(NamedTuple):
    """Tensor to be written, which `value` computes when its file is."""

    name: str
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]


def open_tensors(folder: Path, files: contextlib.ExitStack) -> Iterable[StoredTensor]:
    """Tensors of a directory, from one file or from the files that its index names.

    Args:
        folder: the policy directory.
        files: keeps the files open.

    Raises:
        UserError: there are no weights, the index is no index or leads out of the directory, or a
            file is damaged; for a truncated one the message names the first incomplete tensor.
    """
    for name in _weight_files(folder):
        try:
            file = files.enter_context(safe_open(folder / name, framework='numpy'))
        except (OSError, SafetensorError) as error:
            if (tensor := _truncated(folder / name)) is not None:
                raise UserError(
                    f"{folder / name} is truncated: tensor '{tensor}' is not whole; fetch the file "
                    'again.'
                ) from None
            raise UserError(f'{folder / name} cannot be read as safetensors: {error}.') from None
        for key in file.keys():
            part = file.get_slice(key)
            yield StoredTensor(file, key, tuple(part.get_shape()), part.get_dtype())


def write_tensors(
    folder: Path,
    tensors: Sequence[PendingTensor],
    dtype: np.dtype,
    shard_bytes: int,
    *,
    write: bool,
) -> None:
    """Writes tensors in the order given: one file, or several with an index.

    Args:
        folder: a directory without weights.
        tensors: their names, shapes and values.
        dtype: of the values, for their sizes.
        shard_bytes: most bytes in one file, but for a larger tensor; the host holds up to twice as
            many at a time.
        write: False computes the values alone, which all processes of a program do together.
    """
    shards: list[list[PendingTensor]] = [[]]
    total = held = 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape)) * dtype.itemsize
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        total, held = total + size, held + size
    names = (
        [SHARD.format(i + 1, len(shards)) for i in range(len(shards))]
        if len(shards) > 1
        else [WEIGHTS]
    )
    for name, shard in zip(names, shards):
        values = {tensor.name: tensor.value() for tensor in shard}
        if write:
            # transformers before 5 refuses files that do not say which framework wrote them.
            save_file(values, folder / name, metadata={'format': 'pt'})
        del values
    if write and len(shards) > 1:
        index = {
            'metadata': {'total_size': total},
            'weight_map': {
                tensor.name: name for name, shard in zip(names, shards) for tensor in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file() and (folder / STAGED).is_dir():
        raise UserError(
            f'{folder} holds no weights, since the last save into it was interrupted; save the policy again, as '
            'the run that made it does when it is started again.'
        )
    if not (folder / INDEX).is_file():
        raise UserError(
            f'{folder} has neither {WEIGHTS} nor {INDEX}; other weight formats are not read.'
        )
    try:
        names = sorted(
            set(json.loads((folder / INDEX).read_text(encoding='utf-8'))['weight_map'].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{folder / INDEX} is not an index of safetensors files.') from None
    for name in names:
        # A downloaded index must not lead outside its directory.
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names the file '{name}', which is not in the directory."
            )
    return names


def _truncated(path: Path) -> str | None:
    """Name of a file's first incomplete tensor; None without one, or for an unreadable header."""
    try:
        with open(path, 'rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(length))
            ends = {
                name: 8 + length + entry['data_offsets'][1]
                for name, entry in header.items()
                if name != '__metadata__'
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return None
    size = path.stat().st_size
    return next(
        (name for name, end in sorted(ends.items(), key=lambda item: item[1]) if end > size), None
    )
