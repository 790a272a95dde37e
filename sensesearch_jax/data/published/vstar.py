"""V*: 191 multiple-choice questions about small things in large pictures (115 attributes, 76 positions).

Layout, as the set's page (https://huggingface.co/datasets/craigwu/vstar_bench) and public users of it show it:
test_questions.jsonl with image (a path), text (question, options '(A) …' on lines of their own, and an instruction),
category (direct_attributes or relative_position), label (a letter) and question_id, which counts within a category.

Some releases of the set have the right option always first, and a policy that has learnt to say A then scores 4
to 7 points too high. `vstar` therefore puts the options in an order of its own, the same in every run;
`vstar_published_order` keeps the published one. truth['option_order'] has the published place of each option.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import images_of, one_of, without_placeholders
from sensesearch_jax.data.published.options import letter_place, shuffled, split_options
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

CATEGORIES = ('direct_attributes', 'relative_position')
SEED = 'vstar'  # of the orders; another would make scores of other runs incomparable


class VstarPublishedOrder(PublishedSet):
    """V*: questions about small things in large pictures, options in the published order."""

    name = 'vstar_published_order'
    home = 'https://huggingface.co/datasets/craigwu/vstar_bench'
    splits = {'test': Split(('test_questions.jsonl',), 191)}
    columns = ('image', 'text', 'category', 'label', 'question_id')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        category = one_of(row['category'], CATEGORIES, 'category')
        question, options = split_options(without_placeholders(str(row['text'] or '')))
        if not options:
            raise BadRecord('wrong options', "its 'text' has no options (A), (B), …")
        letter_place(row['label'], len(options))
        return {
            'id': f'{category}/{row["question_id"]}',
            'question': question,
            'images': images_of(row['image'], file.parent),
            'choices': options,
            'answers': [str(row['label']).strip().strip('().').upper()],
            'category': category,
            'reward': 'letter',
            'truth': {'option_order': list(range(len(options)))},
        }


class Vstar(VstarPublishedOrder):
    """V*: questions about small things in large pictures, options in an order that no release has."""

    name = 'vstar'

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        record = super().record(row, place, file)
        options, answer, order = shuffled(
            record['choices'], record['answers'][0], f'{SEED} {record["id"]}'
        )
        return record | {'choices': options, 'answers': [answer], 'truth': {'option_order': order}}
