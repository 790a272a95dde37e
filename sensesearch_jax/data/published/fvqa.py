"""FVQA of MMSearch-R1: questions about photographs, half of which need a search.

Layout, as the set's page (https://huggingface.co/datasets/lmms-lab/FVQA) and public users of it show it:
fvqa_train.parquet and fvqa_test.parquet with data_id, prompt (chat turns), images (list of {bytes, path}),
reward_model {ground_truth, candidate_answers, style}, data_source and, in the training file, category
(search_free or search_required). candidate_answers is a list written as JSON text. The pickled caches of
image searches beside them are not read: a pickle can run code.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import chat_record
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row


class Fvqa(PublishedSet):
    """FVQA: factual questions about photographs, with and without need of a search."""

    name = 'fvqa'
    home = 'https://huggingface.co/datasets/lmms-lab/FVQA'
    licence = 'Apache-2.0'
    splits = {
        'train': Split(('fvqa_train*.parquet', 'data/train-*.parquet'), 4856),
        'test': Split(('fvqa_test*.parquet', 'data/test-*.parquet'), 1800),
    }
    columns = ('prompt', 'images', 'reward_model')
    optional = ('data_id', 'category', 'data_source')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        return chat_record(row, place, file.parent)
