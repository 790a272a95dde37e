"""The pocket world as a source of questions: made when they are asked for, not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.sources import Source
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.files import SPLITS, PocketFiles
from sensesearch_jax.pocket.world.question_folder import read_questions, write_questions
from sensesearch_jax.pocket.world.questions import KINDS, make_questions
from sensesearch_jax.runtime.progress import Progress

USUAL_LIMIT = 300  # where the source has none


def questions(source: Source, folder: Path) -> list[Question]:
    """Questions of the source's split and category, evenly of all categories where it names none.

    Args:
        source: its `limit` is how many are made, its `seed` which.
        folder: where pictures and questions are written.

    Raises:
        UserError: more questions than the split's entities give.
    """
    check_source(source)
    return drawn(source, folder, PocketFiles())


def drawn(source: Source, folder: Path, files: PocketFiles) -> list[Question]:
    """Questions about the entities of some data folder, written with their pictures.

    Args:
        source: as for `questions`.
        folder: where pictures and questions are written.
        files: the entities.

    Raises:
        UserError: more questions than the split's entities give.
    """
    limit = source.limit or USUAL_LIMIT
    categories = [source.category] if source.category else list(KINDS)
    counts = [
        limit // len(categories) + (place < limit % len(categories))
        for place in range(len(categories))
    ]
    made = [
        pair
        for category, count in zip(categories, counts)
        if count
        for pair in make_questions(files, source.split, category, count, source.seed)
    ]
    pictures = len({question.images[0] for question, _ in made})
    with Progress(f'{source.split} pictures', pictures, unit='picture') as bar:
        write_questions(made, folder, files, lambda done, total: bar.update())
    return read_questions(folder)


def prepare() -> None:
    """Nothing: the tools' data come with the project."""


def check_source(source: Source) -> None:
    """Whether the pocket world has such a split and category.

    Raises:
        UserError: it has not.
    """
    check_parts(source, 'pocket', SPLITS)


def check_parts(source: Source, world: str, splits: Sequence[str]) -> None:
    """Whether a world has the split and the category of a source, where it names any.

    Args:
        source: as the config names it.
        world: the world's name.
        splits: that it has.

    Raises:
        UserError: it has not.
    """
    if source.split and source.split not in splits:
        raise UserError(
            f'The {world} world has no split {source.split!r}; choose from {list(splits)}.'
        )
    if source.category and source.category not in KINDS:
        raise UserError(
            f'The {world} world has no category {source.category!r}; choose from {list(KINDS)}.'
        )
