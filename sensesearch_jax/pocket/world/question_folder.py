"""A folder of questions: `questions.jsonl` beside `images/`, written with all its pictures and read
back.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.scenes import Renderer, SceneSpec
from sensesearch_jax.runtime.workdir import atomic_write
from tools_server.answer_matching.gold import gold_fault

QUALITY = 88  # of the JPEG files


def write_questions(
    questions: Sequence[tuple[Question, SceneSpec | None]],
    folder: Path | str,
    files: PocketFiles | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Renders the pictures at full size and writes `questions.jsonl` beside `images/`.

    An interrupted call goes on where it stopped: `plan.jsonl` says which pictures belong together,
    and pictures of the same plan are kept.

    Args:
      questions: what `make_questions` returned; several sets may be joined, their picture names
          differ.
      folder: made if it does not exist.
      files: the pocket data; the packaged one by default.
      progress: called with (pictures done, pictures in all) after every picture.

    Raises:
      ValueError: two different pictures share a name.
    """
    folder, files = Path(folder), files or PocketFiles()
    pictures: dict[str, tuple[str, SceneSpec | None]] = {}
    for question, spec in questions:
        [image] = question.images
        if pictures.setdefault(image, (question.truth['entity'], spec))[1] != spec:
            raise ValueError(f'two scenes are called {image}: make the sets with different seeds')
    plan = ''.join(
        json.dumps({'image': image, 'entity': entity, 'scene': spec.to_json() if spec else None})
        + '\n'
        for image, (entity, spec) in pictures.items()
    )
    plan_file = folder / 'plan.jsonl'
    same = plan_file.is_file() and plan_file.read_text(encoding='utf-8') == plan
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    if not same:
        plan_file.write_text(plan, encoding='utf-8')
    renderer = Renderer(files)

    def draw(item: tuple[str, tuple[str, SceneSpec | None]]) -> None:
        image, (entity, spec) = item
        target = folder / image
        if same and target.is_file():
            return
        picture = (
            renderer.render(spec)
            if spec
            else renderer.alone(entity, np.random.default_rng(zlib.crc32(image.encode())))
        )
        partial = target.with_suffix('.partial')
        picture.save(partial, 'JPEG', quality=QUALITY)
        os.replace(partial, target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(draw, pictures.items()), 1):
            if progress:
                progress(done, len(pictures))
    lines = ''.join(
        json.dumps(question.to_json(), ensure_ascii=False) + '\n' for question, _ in questions
    )
    atomic_write(folder / 'questions.jsonl', lines)


def read_questions(folder: Path | str) -> list[Question]:
    """The questions of a folder in the file's order, their images as paths that can be opened.

    Raises:
      UserError: there is no questions.jsonl, a line of it is no question, or no answer could be
          right by its references.
    """
    file = Path(folder) / 'questions.jsonl'
    if not file.is_file():
        raise UserError(f'{folder} holds no questions.jsonl: write the questions first')
    questions = []
    for number, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1):
        try:
            question = Question.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'line {number} of {file} is no question ({error}): write the questions again'
            ) from error
        fault = gold_fault(question.answers, question.choices)
        if fault:
            raise UserError(
                f'question {question.id} in line {number} of {file} cannot be answered right: {fault}.'
            )
        questions.append(
            dataclasses.replace(
                question, images=tuple(str(Path(folder) / image) for image in question.images)
            )
        )
    return questions
