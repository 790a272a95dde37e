"""Checkpoints of a stage: the arrays of a step, complete or not there at all.

Orbax writes a step under a temporary name and renames it when everything is on disk, so a process
killed while saving leaves the previous step as the latest. It copies the arrays to the host's memory
and writes them from there while training goes on. What this module adds: mismatches are refused,
where Orbax would truncate or pad an array of another shape without a word and skip a save whose step
is not new.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.closing import Closing
from sensesearch_jax.runtime.threads import SharedProgram


class Restored(NamedTuple):
    """A checkpoint read back: its step, and its arrays in the structure of the target."""

    step: int
    arrays: Any


class Kept(NamedTuple):
    """The policy by which checkpoints are kept; the others are deleted.

    Args:
        last: newest ones, at least 1.
        every: those of the steps that this number divides; 0: none for that.
        best: those with the highest scores; 0: none for that.
    """

    last: int
    every: int
    best: int


class BestScored(PreservationPolicy):
    """The rule that keeps the best few of the steps that have a score.

    Orbax's own takes a score with the save. Here it comes later: a step is saved first and validated
    then, so that a run that is killed in between goes on with the validation.

    Args:
        scores: by step, more is better; they may be added while the rule is in use.
        count: how many of the best.
    """

    def __init__(self, scores: Mapping[int, float], count: int):
        self.scores, self.count = scores, count

    def best(self, steps: Sequence[int]) -> list[int]:
        """The steps that have a score, the best first; of equal ones the later."""
        scored = (step for step in steps if step in self.scores)
        return sorted(scored, key=lambda step: (self.scores[step], step), reverse=True)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """See orbax: of each checkpoint, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = self.best(steps)[: self.count]
        return [step in best for step in steps]


class Checkpoints(Closing):
    """The checkpoints in one directory, of which some are kept.

    In a program of several processes all of them call every method together; arrays may be sharded
    over all devices.

    Args:
        directory: of the steps, one folder each; nothing else may use it. It is made if needed, and
            what a killed save left behind is removed.
        kept: which of them are kept.

    Raises:
        ValueError: `kept.last` is below 1, or another count below 0.
    """

    def __init__(self, directory: str | os.PathLike[str], kept: Kept):
        if kept.last < 1 or min(kept) < 0:
            raise ValueError(
                f'At least the last checkpoint must be kept, and counts be 0 or more: {kept}.'
            )
        self.directory = Path(directory).absolute()
        self._scored = BestScored({}, kept.best)
        every = [EveryNSteps(kept.every)] if kept.every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(kept.last), *every, self._scored]),
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that are kept, oldest first."""
        return sorted(self._manager.all_steps())

    def score(self, step: int, value: float) -> None:
        """Notes how good a step is, more is better; the best ones are not removed.

        Scores are not stored: whoever opens the directory again gives them again.
        """
        self._scored.scores[step] = value

    def best_step(self) -> int | None:
        """The best of the steps that are kept, the latest of equal ones; None without a score."""
        return next(iter(self._scored.best(self.steps())), None)

    def save(self, step: int, arrays: Any) -> None:
        """Saves a step; afterwards those that are not to be kept are deleted.

        Returns as soon as the arrays are copied: they may be changed or donated then. They are on
        disk after `wait`, or when the next `save` has begun to copy.

        Args:
            step: number of the step, above every step saved so far.
            arrays: pytree of arrays (jax or numpy), such as an NNX state with an optimizer's.

        Raises:
            ValueError: the step is not new, or a leaf is not an array.
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
        layout = {name: _layout(leaf) for name, leaf in leaves.items()}
        if jax.default_backend() == 'cpu':
            # Orbax would read the very buffers, and a step that donates them would wait for that.
            leaves = {
                name: _copied(x) if isinstance(x, jax.Array) else x for name, x in leaves.items()
            }
        items = ocp.args.Composite(
            host=ocp.args.JsonSave({'layout': layout}), arrays=ocp.args.StandardSave(leaves)
        )
        self.wait()  # here, where others may launch meanwhile
        # In a program of several processes orbax has a barrier on their devices.
        with contextlib.nullcontext() if jax.process_count() == 1 else multihost.together():
            self._manager.save(step, args=items)

    @property
    def saving(self) -> bool:
        """Whether the last save is not yet on disk."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits until the last save is on disk, and raises what went wrong with it."""
        self._manager.wait_until_finished()

    def restore(self, target: Any, step: int | None = None) -> Restored | None:
        """Reads a step back.

        Args:
            target: pytree with the structure of what was saved. Its leaves are arrays, or
                `jax.ShapeDtypeStruct` as `jax.eval_shape` gives, with a sharding where an array is
                to be spread over devices. A numpy array in it comes back as a numpy array, anything
                else as a jax array.
            step: the newest complete one by default.

        Returns:
            The checkpoint, or None if there is none and no step was asked for.

        Raises:
            ValueError: the step does not exist, or its arrays have other names, shapes or dtypes
                than the target's.
        """
        self.wait()
        if step is None and (step := self.latest_step()) is None:
            return None
        if step not in self._manager.all_steps():
            raise ValueError(f'There is no step {step} in {self.directory}, only {self.steps()}.')
        leaves = _named_leaves(target)
        host = ocp.args.Composite(host=ocp.args.JsonRestore())
        stored = self._manager.restore(step, args=host)['host']['layout']
        _check_layout(self.directory / str(step), stored, leaves)
        templates = {name: _template(leaf) for name, leaf in leaves.items()}
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(templates))
        arrays = self._manager.restore(step, args=items)['arrays']
        return Restored(
            step, jax.tree.unflatten(jax.tree.structure(target), [arrays[name] for name in leaves])
        )

    def close(self) -> None:
        """Waits for the last save, and frees the directory."""
        self._manager.close()


def read_step(folder: Path, target: Any) -> Any:
    """Some arrays of a step, while a run may be writing others into its directory.

    Args:
        folder: of the step.
        target: as for `Checkpoints.restore`, but a part of what was saved is enough.

    Raises:
        UserError: an array of the target is not there, or has another shape or dtype.
    """
    leaves = _named_leaves(target)
    folder = folder.absolute()  # orbax takes no other
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        stored = reader.restore(folder / 'host', args=ocp.args.JsonRestore())['layout']
    _check_layout(folder, {name: stored[name] for name in leaves if name in stored}, leaves)
    templates = {name: _template(leaf) for name, leaf in leaves.items()}
    items = ocp.args.PyTreeRestore(
        templates,
        restore_args=ocp.checkpoint_utils.construct_restore_args(templates),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(folder / 'arrays', args=items)
    return jax.tree.unflatten(jax.tree.structure(target), [arrays[name] for name in leaves])


def _check_layout(folder: Path, stored: Mapping[str, list], leaves: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose arrays have other names, shapes or dtypes than the leaves."""
    wanted = {name: _layout(leaf) for name, leaf in leaves.items()}
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = (_described(layout.get(name)) for layout in (stored, wanted))
        if there != here:
            raise UserError(
                f'Step {folder.name} in {folder.parent} does not fit this program: '
                f'{name} is {there} there and {here} here.'
            )


_copied = SharedProgram(jax.jit(jnp.copy))


def _named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by a readable name, so that every kind of pytree is stored alike."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator='.') or 'value'
        if name in named:
            raise ValueError(f'Two arrays of the tree have the same name, {name}.')
        named[name] = leaf
    return named


def _layout(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _described(layout: list[Any] | None) -> str:
    return 'not there' if layout is None else f'{layout[0]}{layout[1]}'


def _template(leaf: Any) -> Any:
    """The target that Orbax restores a leaf into."""
    if isinstance(leaf, np.ndarray):
        return leaf
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(leaf, 'sharding', None) or here
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
