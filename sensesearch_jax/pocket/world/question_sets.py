"""The question sets of a run, drawn once into its workdir."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.question_folder import read_questions, write_questions
from sensesearch_jax.pocket.world.questions import KINDS, make_questions
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir


def question_set(
    workdir: Workdir, split: str, counts: Mapping[str, int], seed: int
) -> list[Question]:
    """Questions of a split, `counts` per kind; made and rendered at first use, read afterwards.

    Args:
        workdir: that keeps questions and scenes.
        split: 'train', 'validation' or 'test'.
        counts: questions by kind.
        seed: of the draw.

    Raises:
        UserError: an unknown kind, or more questions than the split's entities give.
    """
    unknown = sorted(set(counts) - set(KINDS))
    if unknown:
        raise UserError(f'Question kinds {unknown} are unknown; choose from {list(KINDS)}.')
    folder = Path(workdir / 'questions' / split)
    stage = f'questions-{split}'
    if not workdir.stage_done(stage):
        files = PocketFiles()
        made = [
            pair
            for kind in KINDS
            if counts.get(kind)
            for pair in make_questions(files, split, kind, counts[kind], seed)
        ]
        pictures = len({question.images[0] for question, _ in made})
        with Progress(f'{split} pictures', pictures, unit='picture') as bar:
            write_questions(made, folder, files, lambda done, total: bar.update())
        workdir.mark_done(stage, dict(counts))
    return read_questions(folder)
