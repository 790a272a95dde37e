"""Checkpoints of a learner's state: saved, and restored when a run goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.metrics import Record, read_metrics
from sensesearch_jax.runtime.stopping import Stopped
from sensesearch_jax.training.checkpointing import Checkpoints, Kept
from sensesearch_jax.training.trainer import Learner


def open_checkpoints(folder: Path, config: ConfigDict) -> Checkpoints:
    """The checkpoints of a stage, kept as the config says.

    Args:
        folder: of the stage, which all processes share.
        config: the run's `checkpoint`.
    """
    kept = Kept(config.keep_last, config.keep_every, config.keep_best)
    return Checkpoints(folder / 'checkpoints', kept)


def training_state(learner: Learner) -> dict:
    """The arrays of a learner that a checkpoint holds."""
    state = {'parameters': learner.parameters, 'moments': learner.moments}
    return state if learner.mean is None else state | {'mean': learner.mean}


def keep(learner: Learner, checkpoints: Checkpoints, step: int) -> None:
    """Saves the learner's state, unless a checkpoint of that step or a later one exists.

    Args:
        learner: whose state it is.
        checkpoints: the stage's.
        step: steps after which it is the state.
    """
    if step > (checkpoints.latest_step() or 0):
        checkpoints.save(step, training_state(learner))


def recorded(workdir: Path, stage: str) -> list[Record]:
    """Lines of a stage in the main process's metrics.jsonl, in all processes, which call this together.

    Each other process has only those of the starts that it was part of, where there were more
    processes in some than in others.

    Args:
        workdir: of this process.
        stage: of the run.
    """
    lines = read_metrics(workdir / 'metrics.jsonl', stage) if multihost.is_main() else []
    return json.loads(multihost.allgather_texts(json.dumps(lines))[0])


@contextlib.contextmanager
def saved_if_stopped(learner: Learner, checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Within it, the learner's state is saved when the run is told to stop.

    Args:
        learner: whose state it is, as long as nothing is updated.
        checkpoints: the stage's.
        step: steps after which it is the state.
    """
    try:
        yield
    except Stopped:
        keep(learner, checkpoints, step)
        raise


def not_finite(learner: Learner, checkpoints: Checkpoints, stage: str, step: int) -> UserError:
    """The error that ends a run whose gradients are no longer finite; saves the last good state.

    Args:
        learner: with that state.
        checkpoints: the stage's.
        stage: the name of its part of the config.
        step: steps after which it is the state.
    """
    keep(learner, checkpoints, step)
    return UserError(
        f'The gradients of the last {learner.skipped_in_a_row} updates were not finite, from step {step + 1} on '
        f'({stage}.max_skipped_updates), and none was made; look at what the step trained on, or start anew '
        f'with a smaller {stage}.learning_rate. {checkpoints.directory} holds the state before them.'
    )


def resume(learner: Learner, checkpoints: Checkpoints) -> int:
    """Restores the last checkpoint into the learner; returns its step, 0 if there is none."""
    return restore(learner, checkpoints, checkpoints.latest_step())


def restore(learner: Learner, checkpoints: Checkpoints, step: int | None) -> int:
    """Restores a checkpoint into the learner; returns its step, 0 for None.

    Args:
        learner: whose state is replaced.
        checkpoints: of its stage.
        step: one of those that are kept.
    """
    if step is None:
        return 0
    restored = checkpoints.restore(training_state(learner), step)
    learner.parameters, learner.moments = restored.arrays['parameters'], restored.arrays['moments']
    learner.mean = restored.arrays.get('mean')
    return restored.step
