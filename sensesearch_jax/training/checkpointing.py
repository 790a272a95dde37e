"""Checkpoints of a stage: arrays and host state under one step, complete or not there at all.

Orbax writes a step under a temporary name and renames it when everything is on disk, so a process
killed while saving leaves the previous step as the latest. What this module adds: any pytree of
arrays, host state of every process beside it, and mismatches refused, where Orbax would truncate or pad
an array of another shape without a word and skip a save whose step is not new.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import multihost


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
      step: the step it was saved under.
      arrays: the pytree of arrays, in the structure of the target.
      host_state: what `save` was given by this process.
    """

    step: int
    arrays: Any
    host_state: dict[str, Any]


class Checkpoints:
    """The checkpoints in one directory, of which the newest few are kept.

    In a program of several processes all of them call every method together; arrays may be sharded
    over all devices, and each process gets its own host state back.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
        """Opens the directory, making it if needed, and removes what a killed save left behind.

        Args:
          directory: where the steps lie, one folder each; nothing else may use it.
          keep: how many of the newest steps to keep, at least 1.

        Raises:
          ValueError: keep is below 1.
        """
        if keep < 1:
            raise ValueError(f'keep must be at least 1, got {keep}.')
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that are kept, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, arrays: Any, host_state: Mapping[str, Any] | None = None) -> None:
        """Saves a step; afterwards the oldest ones beyond `keep` are removed.

        Args:
          step: number of the step, above every step saved so far.
          arrays: pytree of arrays (jax or numpy, typed random keys too), such as an NNX state with
            an optimizer's.
          host_state: what else is needed to go on, as values that JSON can hold: position of the
            data iterator, seeds, finished trajectories of an unfinished step. Copied before this
            returns.

        Raises:
          ValueError: the step is not new, a leaf is not an array, or the host state is not JSON.
        """
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise ValueError(
                f'Step {step} cannot be saved in {self.directory}: the latest there is {latest}.'
            )
        leaves = _named_leaves(arrays)
        for name, leaf in leaves.items():
            if not isinstance(leaf, (jax.Array, np.ndarray)):
                raise ValueError(
                    f'Only arrays can be saved, but {name} is a {type(leaf).__name__}.'
                )
        try:
            text = json.dumps(dict(host_state or {}), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f'The host state cannot be written as JSON: {error}.') from None
        host = {
            'layout': {name: _layout(leaf) for name, leaf in leaves.items()},
            'processes': multihost.allgather_texts(text),
        }
        items = {'host': ocp.args.JsonSave(host)}
        if leaves:
            stored = {
                name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items()
            }
            items['arrays'] = ocp.args.StandardSave(stored)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, target: Any, step: int | None = None) -> Restored | None:
        """Reads a step back.

        Args:
          target: pytree with the structure of what was saved. Its leaves are arrays, or
            `jax.ShapeDtypeStruct` as `jax.eval_shape` gives, with a sharding where an array is to
            be spread over devices. A numpy array in it comes back as a numpy array, anything else
            as a jax array.
          step: which step; the newest complete one by default.

        Returns:
          The checkpoint, or None if there is none and no step was asked for.

        Raises:
          ValueError: the step does not exist, or its arrays have other names, shapes or dtypes than
            the target's, or it was saved by another number of processes.
        """
        latest = self.latest_step()
        if step is None and latest is None:
            return None
        if step is None:
            step = latest
        if step not in self._manager.all_steps():
            raise ValueError(f'There is no step {step} in {self.directory}, only {self.steps()}.')
        host = self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))[
            'host'
        ]
        leaves = _named_leaves(target)
        self._check_layout(
            step, host['layout'], {name: _layout(leaf) for name, leaf in leaves.items()}
        )
        if len(host['processes']) != jax.process_count():
            raise UserError(
                f'Step {step} in {self.directory} was saved by {len(host["processes"])} processes and this '
                f'program has {jax.process_count()}: each needs its own host state back.'
            )
        restored = self._restore_arrays(step, leaves)
        treedef = jax.tree.structure(target)
        state = json.loads(host['processes'][jax.process_index()])
        return Restored(step, jax.tree.unflatten(treedef, restored), state)

    def close(self) -> None:
        """Frees the directory."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_layout(self, step: int, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted(stored.keys() | wanted.keys()):
            there, here = (_described(layout.get(name)) for layout in (stored, wanted))
            if there != here:
                raise UserError(
                    f'Step {step} in {self.directory} does not fit this program: '
                    f'{name} is {there} there and {here} here.'
                )

    def _restore_arrays(self, step: int, leaves: dict[str, Any]) -> list[Any]:
        if not leaves:
            return []
        templates = {name: _template(leaf) for name, leaf in leaves.items()}
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(templates))
        )['arrays']
        return [
            _wrap_key(arrays[name], leaf) if _is_key(leaf) else arrays[name]
            for name, leaf in leaves.items()
        ]


def _named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by a readable name, so that every kind of pytree is stored alike."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator='.') or 'value'
        if name in named:
            raise ValueError(f'Two arrays of the tree have the same name, {name}.')
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wrap_key(data: jax.Array, leaf: Any) -> jax.Array:
    """The random key of the target leaf's kind, from its stored data."""
    kinds: list[Any] = []
    # Only a key, real or traced, tells its kind, and the leaf may be a mere shape.
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), leaf)
    return jax.random.wrap_key_data(data, impl=kinds[0])


def _layout(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _described(layout: list[Any] | None) -> str:
    return 'not there' if layout is None else f'{layout[0]}{layout[1]}'


def _template(leaf: Any) -> Any:
    """The target that Orbax restores a leaf into."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
