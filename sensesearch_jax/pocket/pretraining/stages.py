"""Stages of the base policy's training: how long each lasts, at which rate, and what it teaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from sensesearch_jax.errors import UserError


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: of the stage.
        steps: of the optimiser.
        learning_rate: that a cosine comes down from, after a rise.
        lessons_per_step: batches, each of one lesson, whose gradients make one step.
        probe_weight: of the probes' loss at the first step and at the last one.
        freeze_tower: whether the vision tower stays as it is.
        lessons: with their shares.
    """

    name: str
    steps: int
    learning_rate: float
    lessons_per_step: int
    probe_weight: tuple[float, float]
    freeze_tower: bool
    lessons: Mapping[str, float]


class Stages:
    """Stages one after another; after the last step the last one goes on.

    Args:
        declared: of configs/base.py, dictionaries of the fields of `Stage`.

    Raises:
        UserError: there is none, one has no steps, or its fields are not those of a stage.
    """

    def __init__(self, declared: Iterable[Mapping[str, Any]]):
        self.stages = [_stage(fields) for fields in declared]
        if not self.stages or min(min(s.steps, s.lessons_per_step) for s in self.stages) < 1:
            raise UserError(
                'stages: give at least one, each with one or more of steps and lessons_per_step.'
            )
        self._ends = np.cumsum([stage.steps for stage in self.stages]).tolist()
        self.steps = self._ends[-1]

    def at(self, step: int) -> Stage:
        """The stage that a step, counted from 0, belongs to."""
        return self.stages[self._number(step)]

    def probe_weight(self, step: int) -> float:
        """Weight of the probes' loss at a step."""
        stage, number = self.at(step), self._number(step)
        place = step - (self._ends[number] - stage.steps)
        return float(np.interp(place, (0, max(stage.steps - 1, 1)), stage.probe_weight))

    def learning_rate(self, warmup: int) -> optax.Schedule:
        """One cosine after another.

        Args:
            warmup: steps that a rate rises over, at most half of its stage.
        """
        cycles = [
            optax.warmup_cosine_decay_schedule(
                0, s.learning_rate, min(warmup, s.steps // 2), s.steps, s.learning_rate * 0.02
            )
            for s in self.stages
        ]
        return optax.join_schedules(cycles, self._ends[:-1])

    def _number(self, step: int) -> int:
        return min(int(np.searchsorted(self._ends, step, 'right')), len(self.stages) - 1)


def _stage(fields: Mapping[str, Any]) -> Stage:
    if set(fields) != set(Stage._fields):
        raise UserError(
            f'stages: a stage has the fields {", ".join(Stage._fields)}; one has {", ".join(fields)}.'
        )
    return Stage(**fields)
