"""DeepEyes-4K and VisualProbe, the training sets of Mini-o3: questions about small things in large pictures.

Layout, as Mini-o3's README and public users of the sets show it
(https://huggingface.co/datasets/Mini-o3/DeepEyes_train_4K, …/VisualProbe_train): train.json, a list of
{problem, images, solution, data_source}, beside data/ with the images. A problem begins with '<image>'; paths of
images begin with the set's own folder, or are read by their names in data/. The licences are not stated.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import (
    answer_texts,
    images_of,
    with_options,
    without_placeholders,
)
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row


class _MiniO3(PublishedSet, skip_registration=True):
    columns = ('problem', 'images', 'solution')
    optional = ('doc_id', 'data_source')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        number = row.get('doc_id')
        number = place.rpartition(':')[2] if number is None else number
        return with_options(
            {
                'id': f'{cls.name}-{file.stem}-{number}',
                'question': without_placeholders(str(row['problem'] or '')),
                'images': images_of(
                    row['images'], file.parent, inside=('', '..', 'data', 'images')
                ),
                'answers': answer_texts(row['solution']),
            }
        )


class DeepEyes4k(_MiniO3):
    """DeepEyes-4K: questions about small things in large pictures."""

    name = 'deepeyes_4k'
    home = 'https://huggingface.co/datasets/Mini-o3/DeepEyes_train_4K'
    splits = {'train': Split(('train.json',), 4000)}


class VisualProbe(_MiniO3):
    """VisualProbe: questions about very small things in very large pictures; its three evaluation sets too."""

    name = 'visual_probe'
    home = 'https://huggingface.co/datasets/Mini-o3/VisualProbe_train'
    splits = {'train': Split(('train.json',)), 'test': Split(('val.json',))}
