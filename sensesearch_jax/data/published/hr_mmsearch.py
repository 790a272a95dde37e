"""HR-MMSearch: 305 questions about small things in 4K pictures of 2025's news, most of which need a search.

Layout, as the paper's release and public users of it show it (https://huggingface.co/datasets/sensenova/HR-MMSearch):
a JSONL file of {sample_id, query, query_image, ground_truth, difficulty, category} beside its images. The
name of the file and whether images lie beside it or in images/ we could not confirm; both are read, and the
same columns in JSON or Parquet. The same set in the layout of SenseNova-MARS is a part of `sensenova_mars`.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import answer_texts, images_of, without_placeholders
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row


class HrMmsearch(PublishedSet):
    """HR-MMSearch: questions about small things in 4K pictures, most of which need a search."""

    name = 'hr_mmsearch'
    home = 'https://huggingface.co/datasets/sensenova/HR-MMSearch'
    splits = {
        'test': Split(('data.jsonl', '*.jsonl', '*.json', '*.parquet', 'data/*.parquet'), 305)
    }
    columns = ('sample_id', 'query', 'query_image', 'ground_truth', 'difficulty', 'category')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        return {
            'id': row['sample_id'],
            'question': without_placeholders(str(row['query'] or '')),
            'images': images_of(row['query_image'], file.parent, inside=('', 'images')),
            'answers': answer_texts(row['ground_truth']),
            'category': row['category'] or '',
            'difficulty': str(row['difficulty'] or '').lower(),
        }
