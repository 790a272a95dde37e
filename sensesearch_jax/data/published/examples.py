"""The tensorflow-datasets form that all published sets share, and how its examples are read back.

Image files are stored as they came and are never decoded here; no TensorFlow is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.plain_format import to_record

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


def from_example(example: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """The plain record of an example.

    Args:
        example: as the data source gives it.
        images: references under which its images are found, in order.
    """
    return {
        **{name: _text(example[name]) for name in _TEXTS},
        **{name: [_text(value) for value in example[name]] for name in _LISTS},
        'images': list(images),
        'weight': float(example['weight']),
        'truth': json.loads(_text(example['truth'])),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()
