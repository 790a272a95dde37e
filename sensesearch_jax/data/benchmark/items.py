"""Items of a benchmark in the making: a picture, the box of the object, a question and its one answer.

An item is a line of JSONL, in the plain format of docs/data.md but for:

- `image` is one picture, and `box` the object in it: [left, top, right, bottom] in pixels of the upright picture
- `answer` is one text, and `aliases` are other ways to write it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.images import HASH
from sensesearch_jax.data.plain_format import BadRecord, to_question
from sensesearch_jax.data.source_report import BadImage, image_size
from tools_server.answer_matching.characters import clean

# Between two answers in one text. A comma is part of many names, and 'and' of more.
_BETWEEN = (';', '|', '\n', ' / ', ' or ')


@dataclass(frozen=True)
class Rules:
    """Limits that an item keeps to.

    Args:
        min_width: least pixels of the picture's longer side.
        min_height: least pixels of its shorter side.
        max_area: of the box, as a share of the picture; it stays below.
        max_likeness: of two pictures, from 0 to 1; see `likeness.py`.
    """

    min_width: int
    min_height: int
    max_area: float
    max_likeness: float


@dataclass
class Item:
    """An item and its faults.

    Args:
        id: of the item, or its place in the file.
        question: with the box in its truth, as fractions of the picture; None where there is none.
        size: width and height of the picture in pixels; None where it cannot be read.
        faults: kind and message of each.
    """

    id: str
    question: Question | None = None
    size: tuple[int, int] | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)

    @property
    def area(self) -> float:
        """Share of the picture that the box covers."""
        left, top, right, bottom = self.question.truth['box']
        return (right - left) * (bottom - top)


def read_item(record: Any, place: str, folder: Path, source: str, rules: Rules) -> Item:
    """An item with all faults that can be seen without another item.

    Args:
        record: the JSON object.
        place: of it in its file.
        folder: relative paths of pictures start here.
        source: name of the benchmark.
        rules: that it is held to.
    """
    if not isinstance(record, Mapping):
        return Item(place, faults=[('no object', f'it is {type(record).__name__}, not an object')])
    plain = {key: value for key, value in record.items() if key not in ('box', 'aliases')}
    try:
        question = to_question(plain, folder, source)
    except BadRecord as error:
        return Item(str(record.get('id', place)), faults=[(error.kind, str(error))])
    item = Item(question.id, question)
    box = record.get('box')
    if len(question.images) != 1 or question.images[0].startswith(HASH):
        item.faults.append(('not one picture', f'it has {len(question.images)}; give one file'))
    else:
        _look_at_picture(item, box, rules)
    _look_at_answer(item, record.get('aliases', []))
    return item


def _look_at_picture(item: Item, box: Any, rules: Rules) -> None:
    try:
        item.size = width, height = image_size(item.question.images[0])
    except BadImage as error:
        item.faults.append((error.kind, str(error)))
        return
    if max(item.size) < rules.min_width or min(item.size) < rules.min_height:
        least = f'{rules.min_width}×{rules.min_height}'
        item.faults.append(('low resolution', f'{width}×{height} pixels are below {least}'))
    numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
    if not numbers or len(box) != 4:
        item.faults.append(('no box', f"its 'box' is {box!r}; give [left, top, right, bottom]"))
        return
    left, top, right, bottom = box
    if right - left < 1 or bottom - top < 1:
        why = f'{box} is less than a pixel wide or high; give pixels, left and top first'
        item.faults.append(('empty box', why))
    elif left < 0 or top < 0 or right > width or bottom > height:
        item.faults.append(('box outside', f'{box} leaves the picture of {width}×{height}'))
    else:
        fractions = [left / width, top / height, right / width, bottom / height]
        item.question.truth['box'] = fractions
        if item.area >= rules.max_area:
            area = f'{item.area:.1%} of the picture, not below {rules.max_area:.1%}'
            item.faults.append(('large box', area))


def _look_at_answer(item: Item, aliases: Any) -> None:
    question = item.question
    if len(question.answers) != 1:
        item.faults.append(
            ('several answers', f"{list(question.answers)}; give one, other spellings as 'aliases'")
        )
    if not isinstance(aliases, list) or not all(isinstance(a, str) and a for a in aliases):
        item.faults.append(('wrong type', f"its 'aliases' are {aliases!r}; give a list of texts"))
        return
    for answer in question.answers:
        if any(mark in answer.strip() for mark in _BETWEEN):
            item.faults.append(('several answers', f'{answer!r} reads as more than one'))
        if not question.choices and _within(answer, question.text):
            item.faults.append(('answer in question', f'{answer!r} stands in the question'))
    item.question = dataclasses.replace(question, answers=(*question.answers, *aliases))


def _within(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in a text one after another."""
    answer, text = _words(answer), _words(text)
    return bool(answer) and f' {answer} ' in f' {text} '


def _words(text: str) -> str:
    kept = (c if c.isalnum() else ' ' for c in clean(text).casefold())
    return ' '.join(''.join(kept).split())
