"""SimpleVQA: short factual questions about pictures; the 1,013 in English, as the paper has it.

Layout, as the set's page (https://huggingface.co/datasets/m-a-p/SimpleVQA), lmms-eval and VLMEvalKit read it: data_id,
image (base64 text, or {bytes, path}), language (EN or CN), question, answer, original_category and others. The form of
the file we could not confirm: Parquet, JSON, JSONL and VLMEvalKit's SimpleVQA.tsv are read. Rows in another
language are left out; without a column 'language', those whose question has Chinese signs.
"""

from __future__ import annotations

import re
from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import LeftOut, answer_texts, images_of
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

_CHINESE = re.compile('[\u3400-\u9fff]')


class SimpleVqa(PublishedSet):
    """SimpleVQA in English: short factual questions about pictures."""

    name = 'simple_vqa'
    home = 'https://huggingface.co/datasets/m-a-p/SimpleVQA'
    splits = {
        'test': Split(('*.parquet', 'data/*.parquet', 'SimpleVQA*.tsv', '*.jsonl', '*.json'), 1013)
    }
    columns = ('question', 'answer', 'image')
    optional = ('data_id', 'index', 'language', 'original_category')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        question = str(row['question'] or '')
        language = str(row.get('language') or '').lower()
        if not language.startswith('en') if language else _CHINESE.search(question):
            raise LeftOut('not in English', 'it is not in English')
        name = row.get('data_id') if row.get('data_id') is not None else row.get('index')
        return {
            'id': place if name is None else str(name),
            'question': question.strip(),
            'images': images_of(row['image'], file.parent, inside=('', 'images')),
            'answers': answer_texts(row['answer']),
            'category': row.get('original_category') or '',
        }
