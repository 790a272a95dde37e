"""Collectives of the hosts of a multi-process program, and the shares of each.

Rollouts are local to a process, training is one program of all of them. So the processes agree on
the shapes of a training step before it; nothing else of a rollout has to be the same. Programs of all
processes are launched by the main thread alone, and so in one order everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its barrier has no public name; orbax takes it from here too
from jax.experimental import multihost_utils

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.threads import LAUNCHING

T = TypeVar('T')

NEVER_MS = 1000 * 86400 * 365  # runtime/peers.py ends a wait for a process that is gone

_meetings = itertools.count()


def is_main() -> bool:
    """Whether this is the main process, which writes metrics, policies and progress for all."""
    return jax.process_index() == 0


def process_folder(path: str | os.PathLike[str]) -> Path:
    """Workdir of this process: the given one for the main process, one beside it for each other.

    Each process has its own metrics, locks and pictures of a tool server. Policies and checkpoints
    are shared.
    """
    path = Path(path)
    return path if is_main() else path.with_name(f'{path.name}-process-{jax.process_index()}')


def shared_folder(path: Path) -> Path:
    """Workdir of the main process, given that of this process."""
    return (
        path
        if is_main()
        else path.with_name(path.name.removesuffix(f'-process-{jax.process_index()}'))
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it the main threads of several processes launch a program of all.

    They meet before, without a device: a program that waits for another process keeps the devices
    from all that is queued behind it, such as another thread's rollouts.
    """
    distributed.global_state.client.wait_at_barrier(f'sensesearch/{next(_meetings)}', NEVER_MS)
    with LAUNCHING:
        yield


def broadcast(value: bool) -> bool:
    """Value of the main process, in all processes."""
    if jax.process_count() == 1:
        return value
    with together():
        return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def rows_per_process(count: int, field: str) -> int:
    """Number of rows of each process.

    Args:
        count: rows of all processes.
        field: config field that has the count.

    Raises:
        UserError: the processes do not divide `count`.
    """
    each, left = divmod(count, jax.process_count())
    if left:
        raise UserError(
            f'{field} {count} cannot be dealt to {jax.process_count()} processes; make it a multiple of that.'
        )
    return each


def local_rows(rows: Sequence[Any], count: int, field: str) -> Sequence[Any]:
    """Contiguous shard of rows of this process.

    Args:
        rows: of all processes; the last of them may be missing.
        count: rows of all processes, with missing ones.
        field: config field that has the count.

    Raises:
        UserError: the processes do not divide `count`.
    """
    each = rows_per_process(count, field)
    return rows[jax.process_index() * each : (jax.process_index() + 1) * each]


def local_items(items: Sequence[T]) -> list[T]:
    """Shard of items of this process, strided; the shards may differ in length by one."""
    return list(items[jax.process_index() :: jax.process_count()])


def folders(path: Path) -> list[Path]:
    """Workdirs of all processes, in their order, given that of this process."""
    first = shared_folder(path)
    return [
        first,
        *(first.with_name(f'{first.name}-process-{i}') for i in range(1, jax.process_count())),
    ]


def earlier_folders(path: Path) -> list[Path]:
    """Workdirs of the processes that earlier starts had beside those of this one, given that of this
    process.
    """
    first, now = shared_folder(path), folders(path)
    found = sorted(first.parent.glob(f'{first.name}-process-*'))
    return [f for f in found if f.name.rpartition('-')[2].isdigit() and f not in now]


def barrier() -> None:
    """Barrier of all processes, after which each can read the files that the others have written."""
    if jax.process_count() > 1:
        with together():
            multihost_utils.sync_global_devices('barrier')


def allgather(rows: np.ndarray) -> np.ndarray:
    """Rows of all processes, in their order; all have one shape and a dtype of at most 32 bits."""
    if jax.process_count() == 1:
        return rows
    with together():
        return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def local_part(rows: np.ndarray) -> np.ndarray:
    """Rows of this process, given those of `allgather`."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def global_max(value: int) -> int:
    """Maximum over all processes."""
    return int(allgather(np.array([value])).max())


def pad_alike(batch: Any) -> Any:
    """Batch padded to the largest shape of all processes, so that their rows make one global batch.

    Shapes come from few buckets, and so does the largest. Padding is zeros, which are invalid
    places, and −1 for feature indices.
    """
    if jax.process_count() == 1:
        return batch
    arrays = {name: x for name, x in batch._asdict().items() if name != 'packing'}
    shapes = np.concatenate([x.shape for x in arrays.values()])
    longest = allgather(shapes[None]).max(0)
    ends = np.cumsum([x.ndim for x in arrays.values()])[:-1]
    padded = {}
    for (name, x), shape in zip(arrays.items(), np.split(longest, ends), strict=True):
        fill = -1 if name in ('prompt_features', 'feature_index') else 0
        padded[name] = np.pad(
            x, [(0, int(n) - m) for n, m in zip(shape, x.shape)], constant_values=fill
        )
    if batch.packing is not None:  # its indices are of the padded suffixes
        padded['packing'] = batch.packing.of(
            padded['valid'], global_max(batch.packing.index.shape[1])
        )
    return batch._replace(**padded)


def global_means(values: Mapping[str, float]) -> dict[str, float]:
    """Mean of each value over the processes that have it."""
    found: dict[str, list[float]] = {}
    for text in allgather_texts(json.dumps({name: float(value) for name, value in values.items()})):
        for name, value in json.loads(text).items():
            found.setdefault(name, []).append(value)
    return {name: sum(those) / len(those) for name, those in found.items()}


def allgather_texts(text: str) -> list[str]:
    """Texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = allgather(np.array([len(data)]))
    padded = np.zeros((1, int(lengths.max())), np.uint8)
    padded[0, : len(data)] = data
    return [
        bytes(row[:length]).decode() for row, length in zip(allgather(padded), lengths, strict=True)
    ]


def slowest(seconds: float) -> dict[str, float]:
    """Time by which the slowest process was behind the others, as metrics: `slowest_host`, its
    seconds divided by the others' mean, and `slowest_process`, its number. A single process has none.

    Args:
        seconds: that this process worked without waiting for another one.
    """
    if jax.process_count() == 1:
        return {}
    each = allgather(np.array([seconds], np.float32))
    worst = int(each.argmax())
    others = max(float(np.delete(each, worst).mean()), 1e-3)
    return {'slowest_host': float(each[worst]) / others, 'slowest_process': float(worst)}


def global_sums(*counts: float) -> list[float]:
    """Sum of each count over all processes, exact up to 2^53."""
    sums = np.array(counts, np.float64)
    if jax.process_count() > 1:
        # As pairs of 32 bits, since jax converts arrays to 32 bits.
        with together():
            gathered = np.asarray(multihost_utils.process_allgather(sums.view(np.uint32)))
        sums = np.ascontiguousarray(gathered).view(np.float64).sum(0)
    return [float(value) for value in sums]
