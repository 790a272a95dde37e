"""The tensorflow-datasets form that all published sets share, and how its records are read back.

Image files are stored as they came and are never decoded here; no TensorFlow is needed. Beside the
examples stand their records without the images, since to read a set of 30 GB for its texts takes minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.columns import tfds_source
from sensesearch_jax.data.images import place
from sensesearch_jax.data.plain_format import to_record
from sensesearch_jax.errors import UserError

RECORDS = 'records.jsonl'  # beside the examples, in their order
_TEXTS = ('id', 'question', 'category', 'difficulty', 'source', 'reward')
_LISTS = ('answers', 'choices')


def features() -> tfds.features.FeaturesDict:
    """Fields of an example: those of the plain format, `truth` as JSON text, `images` as files."""
    return tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Text() for name in (*_TEXTS, 'truth')},
            **{name: tfds.features.Sequence(tfds.features.Text()) for name in _LISTS},
            'images': tfds.features.Sequence(tfds.features.Image()),
            'weight': np.float64,
        }
    )


def to_example(question: Question, images: Sequence[bytes]) -> dict[str, Any]:
    """The example of a question and its image files."""
    record = {name: '' for name in _TEXTS} | {name: [] for name in _LISTS} | to_record(question)
    return {
        **{name: record[name] for name in (*_TEXTS, *_LISTS)},
        'reward': question.reward,
        'weight': question.weight,
        'truth': json.dumps(question.truth, ensure_ascii=False),
        'images': list(images),
    }


def to_line(split: str, example: Mapping[str, Any]) -> str:
    """The line of `RECORDS` for an example: its split, its texts, and the hashes of its images."""
    texts = {name: value for name, value in example.items() if name != 'images'}
    line = {'split': split, 'images': _hashes(example), **texts}
    return json.dumps(line, ensure_ascii=False) + '\n'


def read_records(directory: epath.PathLike, split: str) -> Iterator[dict[str, Any]]:
    """The plain records of a split, its images as places within the directory.

    Questions about one picture have one reference of it, although each example has a copy.

    Args:
        directory: of the converted set, down to its version.
        split: its name.

    Raises:
        UserError: it was not converted by this project, and its features are not those of questions.
    """
    places: dict[str, str] = {}
    for row, line in enumerate(_lines(epath.Path(directory), split)):
        where = [
            places.setdefault(content, place(directory, split=split, row=row, item=item))
            for item, content in enumerate(line['images'])
        ]
        yield from_example(line, where)


def _lines(directory: epath.Path, split: str) -> Iterator[dict[str, Any]]:
    if not (directory / RECORDS).exists():  # written by tensorflow-datasets alone
        _check_features(directory)
        for example in tfds_source(str(directory), split):
            yield {**example, 'images': _hashes(example)}
        return
    with (directory / RECORDS).open('rb') as file:
        yield from (line for line in map(json.loads, file) if line['split'] == split)


def _check_features(directory: epath.Path) -> None:
    known = dict(features())
    for name, feature in tfds.builder_from_directory(str(directory)).info.features.items():
        if name not in known or _kind(feature) != _kind(known[name]):
            raise UserError(
                f'{directory} has the feature {name}: {feature!r}, which no question has. Known are '
                f'{", ".join(f"{name}: {feature!r}" for name, feature in known.items())}.'
            )


def _kind(feature: Any) -> tuple[type, type]:
    return type(feature), type(getattr(feature, 'feature', None))  # of a sequence, that of an item


def _hashes(example: Mapping[str, Any]) -> list[str]:
    return [hashlib.sha256(bytes(image)).hexdigest() for image in example.get('images', ())]


def from_example(example: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """The plain record of an example.

    Args:
        example: as the data source gives it.
        images: references under which its images are found, in order.
    """
    read = {
        **dict.fromkeys(_TEXTS, _text),
        **dict.fromkeys(_LISTS, lambda values: [_text(value) for value in values]),
        'weight': float,
        'truth': lambda value: json.loads(_text(value) or '{}'),
    }
    found = {name: function(example[name]) for name, function in read.items() if name in example}
    return found | {'images': list(images)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()
