"""MMSearch, end to end: 300 questions of which 171 come with an image.

Layout, as the set's page (https://huggingface.co/datasets/CaraJ/MMSearch) and lmms-eval read it:
end2end.parquet with sample_id, query, query_image ({bytes, path}, or null), image_search_result (a screenshot, which
we do not use: our tools search themselves), area (news or knowledge), subfield, timestamp, gt_requery, gt_answer
and alternative_gt_answers. The paper reports the 171; the authors' F1 is over all 300.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import (
    LeftOut,
    answer_texts,
    images_of,
    without_placeholders,
)
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row


class MmsearchAll(PublishedSet):
    """MMSearch, end to end: all questions, of which more than half come with an image."""

    name = 'mmsearch_all'
    home = 'https://huggingface.co/datasets/CaraJ/MMSearch'
    splits = {'test': Split(('end2end.parquet', 'end2end/*.parquet'), 300)}
    columns = ('sample_id', 'query', 'query_image', 'gt_answer', 'alternative_gt_answers')
    optional = ('area', 'subfield', 'timestamp')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        return {
            'id': row['sample_id'],
            'question': without_placeholders(str(row['query'] or '')),
            'images': images_of(row['query_image'], file.parent) if has_image(row) else [],
            'answers': answer_texts(row['gt_answer'], row['alternative_gt_answers']),
            'category': row.get('area') or '',
            'truth': {k: str(row[k]) for k in ('subfield', 'timestamp') if row.get(k)},
        }


class Mmsearch(MmsearchAll):
    """MMSearch, end to end: the questions with an image."""

    name = 'mmsearch'
    splits = {'test': Split(MmsearchAll.splits['test'].files, 171)}

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        if not has_image(row):
            raise LeftOut('without an image', 'it has no image; mmsearch_all has it')
        return super().record(row, place, file)


def has_image(row: Row) -> bool:
    """Whether a question comes with an image: a text query has null, or a cell with nothing in it."""
    image = row['query_image']
    return bool(image.get('bytes') or image.get('path') if isinstance(image, dict) else image)
