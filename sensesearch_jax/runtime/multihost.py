"""Programs of several processes: their start, what they agree on before a step, and who speaks for
all.

Rollouts are local to a process, training is one program of all of them. So before a training step
the processes agree on its shapes; nothing else of a rollout has to be the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sensesearch_jax.errors import UserError

T = TypeVar('T')


def start() -> None:
    """Joins the other processes of a multi-host run by jax's own means, before anything else uses
    jax.

    On TPU pods, GKE, SLURM and under MPI jax finds the others by itself; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are
    (docs/multi_host.md).

    Raises:
        UserError: nothing says where the other processes are, or they cannot be reached.
    """

    def number(name):
        return int(os.environ[name]) if name in os.environ else None

    try:
        jax.distributed.initialize(
            num_processes=number('JAX_NUM_PROCESSES'), process_id=number('JAX_PROCESS_ID')
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'The other processes of this run cannot be joined, see docs/multi_host.md: {error}'
        ) from None


def speaks() -> bool:
    """Whether this process writes what is written once for all: metrics, policies, progress."""
    return jax.process_index() == 0


def own_folder(path: str | os.PathLike[str]) -> Path:
    """This process's working directory: the one given for the first, and one beside it for each
    other.

    Metrics, locks and the pictures of a tool server are a process's own; policies and checkpoints
    are not.
    """
    path = Path(path)
    return path if speaks() else path.with_name(f'{path.name}-process-{jax.process_index()}')


def shared_folder(path: Path) -> Path:
    """The first process's working directory, given this process's own."""
    return (
        path
        if speaks()
        else path.with_name(path.name.removesuffix(f'-process-{jax.process_index()}'))
    )


def agreed(value: bool) -> bool:
    """What the first process says, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def share_of(count: int, field: str) -> int:
    """How many of `count` rows are this process's, and every other one's.

    Args:
        field: of the config, which says how many they are.

    Raises:
        UserError: the processes do not divide `count`.
    """
    each, left = divmod(count, jax.process_count())
    if left:
        raise UserError(
            f'{field} {count} cannot be dealt to {jax.process_count()} processes; make it a multiple of that.'
        )
    return each


def share(rows: Sequence[Any], count: int, field: str) -> Sequence[Any]:
    """This process's part of `count` rows, of which the last may be missing; see `share_of`."""
    each = share_of(count, field)
    return rows[jax.process_index() * each : (jax.process_index() + 1) * each]


def dealt(items: Sequence[T]) -> list[T]:
    """This process's part of items that are worked on one by one, as many as they are: dealt out in
    turn.
    """
    return list(items[jax.process_index() :: jax.process_count()])


def folders(path: Path) -> list[Path]:
    """The working directories of all processes, in their order, given this process's own."""
    first = shared_folder(path)
    return [
        first,
        *(first.with_name(f'{first.name}-process-{i}') for i in range(1, jax.process_count())),
    ]


def wait() -> None:
    """Returns when all processes have come here, with their files on disk."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('wait')


def everyone(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, in their order; each has as many, of one shape and at most 32 bits
    a number.
    """
    return (
        rows
        if jax.process_count() == 1
        else np.asarray(multihost_utils.process_allgather(rows, tiled=True))
    )


def own(rows: np.ndarray) -> np.ndarray:
    """This process's part of what `everyone` gave."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def largest(value: int) -> int:
    """The largest of all processes' values."""
    return int(everyone(np.array([value])).max())


def together(batch: Any) -> Any:
    """A batch padded to the longest of all processes, so that their rows make one batch.

    Shapes come from few buckets; the largest of several processes' is one of them. Padding is
    invalid everywhere: zeros, and −1 where an index names a feature.
    """
    if jax.process_count() == 1:
        return batch
    arrays = {name: x for name, x in batch._asdict().items() if name != 'packing'}
    shapes = np.concatenate([x.shape for x in arrays.values()])
    longest = everyone(shapes[None]).max(0)
    cuts = np.cumsum([x.ndim for x in arrays.values()])[:-1]
    padded = {}
    for (name, x), shape in zip(arrays.items(), np.split(longest, cuts), strict=True):
        fill = -1 if name in ('prompt_features', 'feature_index') else 0
        padded[name] = np.pad(
            x, [(0, int(n) - m) for n, m in zip(shape, x.shape)], constant_values=fill
        )
    if batch.packing is not None:  # places among suffixes that are longer now
        padded['packing'] = batch.packing.of(padded['valid'], largest(batch.packing.index.shape[1]))
    return batch._replace(**padded)


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each value over the processes that have it."""
    found: dict[str, list[float]] = {}
    for text in texts(json.dumps({name: float(value) for name, value in values.items()})):
        for name, value in json.loads(text).items():
            found.setdefault(name, []).append(value)
    return {name: sum(those) / len(those) for name, those in found.items()}


def texts(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = everyone(np.array([len(data)]))
    padded = np.zeros((1, int(lengths.max())), np.uint8)
    padded[0, : len(data)] = data
    return [
        bytes(row[:length]).decode() for row, length in zip(everyone(padded), lengths, strict=True)
    ]


def total(*counts: float) -> list[float]:
    """Each count added up over all processes, exactly up to 2^53."""
    sums = np.array(counts, np.float64)
    if jax.process_count() > 1:
        # As bytes, since arrays of jax are cut to 32 bits.
        gathered = np.asarray(multihost_utils.process_allgather(sums.view(np.uint32)))
        sums = np.ascontiguousarray(gathered).view(np.float64).sum(0)
    return [float(value) for value in sums]
