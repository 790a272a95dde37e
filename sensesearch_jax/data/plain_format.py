"""The plain format of a question: one JSON object a question, as docs/data.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.images import HASH, MOST_PATH_CHARS
from tools_server.answer_matching.gold import gold_fault
from tools_server.answer_matching.numbers import read as read_number

REWARDS = ('judge', 'exact', 'letter', 'f1', 'number')
FIELDS = (
    'id', 'question', 'image', 'images', 'answers', 'choices', 'answer', 'category', 'difficulty',
    'source', 'weight', 'reward', 'truth',
)  # fmt: skip


class BadRecord(ValueError):
    """A record that is no question.

    Args:
        kind: the kind of fault, the same for all records that have it.
        message: the fault of this record, in a sentence.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def to_question(record: Mapping[str, Any], folder: epath.PathLike, source: str) -> Question:
    """The question of a plain record.

    Args:
        record: the JSON object.
        folder: relative image paths start here.
        source: the name of the set, where the record names none.

    Raises:
        BadRecord: a field is missing, unknown or of a wrong type, or no response could be right.
    """
    if not isinstance(record, Mapping):
        raise BadRecord('no object', f'it is {type(record).__name__}, not a JSON object')
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise BadRecord(
            'unknown field', f'it has unknown fields {unknown}; known are {list(FIELDS)}'
        )
    name, text = record.get('id'), record.get('question')
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    for field, value in (('id', name), ('question', text)):
        if not isinstance(value, str) or not value.strip():
            raise BadRecord(
                f'no {field}', f"its '{field}' is {value!r}; give a text that is not empty"
            )
    choices = _texts(record, 'choices')
    answers = _texts(record, 'answers', 'answer')
    reward = record.get('reward') or ('letter' if choices else 'judge')
    if reward not in REWARDS:
        raise BadRecord(
            'unknown reward', f"its 'reward' is {reward!r}; choose from {list(REWARDS)}"
        )
    if reward == 'letter' and not choices:
        raise BadRecord('no choices', "its 'reward' is 'letter', but it has no 'choices'")
    if fault := gold_fault(answers, choices):
        raise BadRecord('no right answer', fault)
    if reward == 'number' and not any(map(read_number, answers)):
        raise BadRecord(
            'no right answer', f"its 'reward' is 'number', but none of {list(answers)} is a number"
        )
    weight = record.get('weight', 1.0)
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0.001 <= weight <= 1000
    ):
        raise BadRecord(
            'wrong weight', f"its 'weight' is {weight!r}; give a number of 0.001 to 1000"
        )
    truth = record.get('truth') or {}
    if not isinstance(truth, Mapping):
        raise BadRecord('wrong type', f"its 'truth' is {truth!r}; give an object")
    return Question(
        id=name,
        text=text,
        images=tuple(_reference(image, folder) for image in _texts(record, 'images', 'image')),
        answers=answers,
        choices=choices,
        category=_text(record, 'category'),
        difficulty=_text(record, 'difficulty'),
        source=_text(record, 'source') or source,
        weight=float(weight),
        reward=reward,
        truth=dict(truth),
    )


def to_record(question: Question) -> dict[str, Any]:
    """The plain record of a question; `to_question` gives the question back."""
    record = {
        'id': question.id,
        'question': question.text,
        'images': list(question.images),
        'answers': list(question.answers),
        'choices': list(question.choices),
        'category': question.category,
        'difficulty': question.difficulty,
        'source': question.source,
        'weight': question.weight,
        'reward': question.reward,
        'truth': dict(question.truth),
    }
    always = 'id', 'question', 'answers', 'reward'
    return {k: v for k, v in record.items() if k in always or v not in ('', [], {}, 1.0)}


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if value is None:
        return ''
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRecord('wrong type', f"its '{field}' is {value!r}; give a text")
    return str(value)


def _texts(record: Mapping[str, Any], several: str, one: str = '') -> tuple[str, ...]:
    """A list of texts, from a field that has several or from one that has one."""
    if one and several in record and one in record:
        raise BadRecord('two fields', f"it has both '{several}' and '{one}'; give one of them")
    field = one if one and one in record else several
    value = record.get(field)
    if value is None:
        return ()
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        value = [value]
    if not isinstance(value, list | tuple) or any(
        isinstance(v, bool) or not isinstance(v, str | int | float) for v in value
    ):
        raise BadRecord(
            'wrong type', f"its '{field}' is {str(value)[:80]!r}; give a text or a list of texts"
        )
    return tuple(str(v) for v in value)


def _reference(image: str, folder: epath.PathLike) -> str:
    """A path relative to the folder, made absolute; a content hash or an address stays what it is."""
    if not image.strip():
        raise BadRecord(
            'no image', "an entry of its 'images' is empty; give a path or a content hash"
        )
    if len(image) > MOST_PATH_CHARS:
        raise BadRecord(
            'no image', f'an image begins with {image[:40]!r} and is too long for a path'
        )
    if image.startswith(HASH) or '://' in image or image.startswith('/'):
        return image
    path = str(epath.Path(folder) / image)
    # or a record that is written into another folder names no picture
    return path if '://' in path else str(Path(path).absolute())
