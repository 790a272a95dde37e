"""The question sets of a run, from the source that makes them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.runtime.workdir import Workdir

SPLITS = ('train', 'validation', 'test')
# source -> module with its `question_set`; by name, since no room imports the demo.
SOURCES = {'pocket': 'sensesearch_jax.pocket.world.question_sets'}


def question_set(
    workdir: Workdir, split: str, counts: Mapping[str, int], seed: int
) -> list[Question]:
    """Questions of a split, drawn once into the workdir and read afterwards.

    Args:
        workdir: of the run.
        split: 'train', 'validation' or 'test'.
        counts: how many of each kind.
        seed: of the draw.

    Raises:
        UserError: an unknown kind, or more questions than the source has.
    """
    return importlib.import_module(SOURCES['pocket']).question_set(workdir, split, counts, seed)
