"""The invented world as a source of questions, 'invented': made when they are asked for.

    --config.data.rl=invented --config.tools.config=configs/tools_invented.yaml

Its tools must know it: a run builds it before its tool server starts, where it is not there.
"""

from __future__ import annotations

from pathlib import Path

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.sources import Source
from sensesearch_jax.pocket.invented.build import ensure_built
from sensesearch_jax.pocket.invented.files import InventedFiles
from sensesearch_jax.pocket.invented.world import SPLITS
from sensesearch_jax.pocket.world import question_sets


def questions(source: Source, folder: Path) -> list[Question]:
    """Questions of the source's split and category, evenly of all categories where it names none.

    Args:
        source: its `limit` is how many are made, its `seed` which.
        folder: where pictures and questions are written.

    Raises:
        UserError: the world has no such split or category.
    """
    check_source(source)
    return question_sets.drawn(source, folder, InventedFiles())


def prepare() -> None:
    """Builds the world, unless it is there."""
    ensure_built()


def check_source(source: Source) -> None:
    """Whether the invented world has such a split and category.

    Raises:
        UserError: it has not.
    """
    question_sets.check_parts(source, 'invented', SPLITS)
