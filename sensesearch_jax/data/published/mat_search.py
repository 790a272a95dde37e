"""MAT-Search of Visual-ARFT: 150 questions of several steps, the first 75 simple and the others hard.

Layout, as the set's page (https://huggingface.co/datasets/laolao77/MAT) and the authors' evaluation read it:
MAT-Benchmark/MAT-Search.json, a list of {id, question, answer, image_path}, beside MAT-Search-image/. An answer is
a text or a list of accepted ones. The authors report F1.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import answer_texts, images_of, without_placeholders
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

SIMPLE = 75  # rows; the authors' script tells the two halves apart by place alone


class MatSearch(PublishedSet):
    """MAT-Search: questions about a picture that take several searches."""

    name = 'mat_search'
    home = 'https://huggingface.co/datasets/laolao77/MAT'
    licence = 'Apache-2.0'
    splits = {'test': Split(('MAT-Benchmark/MAT-Search.json', 'MAT-Search.json'), 150)}
    columns = ('id', 'question', 'answer', 'image_path')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        number = int(place.rpartition(':')[2])
        return {
            'id': str(row['id']),
            'question': without_placeholders(str(row['question'] or '')),
            'images': images_of(row['image_path'], file.parent, inside=('MAT-Search-image', '')),
            'answers': answer_texts(row['answer']),
            'difficulty': 'simple' if number <= SIMPLE else 'hard',
        }
