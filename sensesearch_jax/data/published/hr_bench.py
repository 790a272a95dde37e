"""HR-Bench 4K and 8K: 200 multiple-choice questions each, every one asked in four cyclic orders of its options.

Layout, as the set's page (https://huggingface.co/datasets/DreamMr/HR-Bench), lmms-eval and VLMEvalKit read it:
hr_bench_4k.parquet or .tsv (8k likewise) of 800 rows with index, question, answer (a letter), category (single or
cross), A, B, C, D, cycle_category and image (base64 text). The orders are kept as published; rows of one question share
truth['group'], by which intervals are to be drawn. The Parquet files are several times smaller than the TSV.
"""

from __future__ import annotations

import hashlib
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import (
    base64_image,
    images_of,
    one_of,
    without_placeholders,
)
from sensesearch_jax.data.published.options import letter_place
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

CATEGORIES = ('single', 'cross')
LETTERS = 'ABCD'


class _HrBench(PublishedSet, skip_registration=True):
    home = 'https://huggingface.co/datasets/DreamMr/HR-Bench'
    columns = ('index', 'question', 'answer', 'category', *LETTERS, 'image')
    optional = ('cycle_category',)

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        options = [row[letter] for letter in LETTERS]
        if any(option is None or not str(option).strip() for option in options):
            raise BadRecord('wrong options', f'one of its options is empty: {options}')
        question = without_placeholders(str(row['question'] or ''))
        letter = LETTERS[letter_place(row['answer'], len(options))]
        image = _image(row['image'], file)
        content = image if isinstance(image, bytes) else image.encode()
        return {
            'id': f'{cls.name}-{row["index"]}',
            'question': question,
            'images': [image],
            'choices': [str(option).strip() for option in options],
            'answers': [letter],
            'category': one_of(str(row['category'] or '').lower(), CATEGORIES, 'category'),
            'reward': 'letter',
            'truth': {
                'group': hashlib.sha256(question.encode() + content).hexdigest()[:16],
                'cycle': str(row.get('cycle_category') or ''),
            },
        }


def _image(value: Any, file: epath.Path) -> str | bytes:
    if isinstance(value, str) and '.' not in value:
        return base64_image(value)
    return images_of(value, file.parent, inside=('', 'images'))[0]


class HrBench4k(_HrBench):
    """HR-Bench 4K: questions about one or several things in 4K pictures."""

    name = 'hr_bench_4k'
    splits = {'test': Split(('hr_bench_4k.parquet', 'hr_bench_4k.tsv'), 800)}


class HrBench8k(_HrBench):
    """HR-Bench 8K: questions about one or several things in 8K pictures."""

    name = 'hr_bench_8k'
    splits = {'test': Split(('hr_bench_8k.parquet', 'hr_bench_8k.tsv'), 800)}
