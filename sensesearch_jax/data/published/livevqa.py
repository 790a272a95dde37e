"""LiveVQA (research preview): questions about the pictures of recent news.

Layout, as public users of the set show it (https://huggingface.co/datasets/ONE-Lab/LiveVQA-Research-Preview): qa.json,
a list of {sample_id, query, query_image, gt_answer}, beside image/; in qa_detailed.json the same sample_id has a topic.
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import answer_texts, images_of, without_placeholders
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row, rows


class Livevqa(PublishedSet):
    """LiveVQA: questions about the pictures of recent news."""

    name = 'livevqa'
    home = 'https://huggingface.co/datasets/ONE-Lab/LiveVQA-Research-Preview'
    licence = 'CC-BY-NC-4.0'
    splits = {'test': Split(('qa.json',), 3602)}
    columns = ('sample_id', 'query', 'query_image', 'gt_answer')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        name = str(row['sample_id'])
        image = str(row['query_image'] or '').lstrip('/')
        return {
            'id': name,
            'question': without_placeholders(str(row['query'] or '')),
            'images': images_of(image, file.parent, inside=('', 'image')),
            'answers': answer_texts(row['gt_answer']),
            'category': _topics(str(file.parent / 'qa_detailed.json')).get(name, ''),
        }


@functools.lru_cache(maxsize=2)
def _topics(file: str) -> dict[str, str]:
    if not epath.Path(file).is_file():
        return {}
    found = (row for _, row in rows(file, ('sample_id',), (), Livevqa.name))
    return {
        str(r['sample_id']): str(r.get('topic') or '')
        for r in found
        if not isinstance(r, BadRecord)
    }
