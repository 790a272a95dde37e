"""V*: 191 multiple-choice questions about small things in large pictures (115 attributes, 76 positions).

Layout, as the set's page (https://huggingface.co/datasets/craigwu/vstar_bench) and public users of it show it:
test_questions.jsonl with image (a path), text (question, options '(A) …' on lines of their own, and an instruction),
category (direct_attributes or relative_position), label (a letter) and question_id, which counts within a category.
Beside each picture a .json of its name has target_object and bbox, lists of names and of boxes [x, y, width, height]
in pixels, as the authors' own search (https://github.com/penghao-wu/vstar, visual_search.py) reads them. Where there is
one object, truth['box'] is its box, which pages of trajectories draw; without the file there is none.

Some releases of the set have the right option always first, and a policy that has learnt to say A then scores 4
to 7 points too high. `vstar` therefore puts the options in an order of its own, the same in every run;
`vstar_published_order` keeps the published one. truth['option_order'] has the published place of each option.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath
from PIL import Image

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
        images = images_of(row['image'], file.parent)
        return {
            'id': f'{category}/{row["question_id"]}',
            'question': question,
            'images': images,
            'choices': options,
            'answers': [str(row['label']).strip().strip('().').upper()],
            'category': category,
            'reward': 'letter',
            'truth': {'option_order': list(range(len(options))), **_object_box(images[0])},
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
        truth = record['truth'] | {'option_order': order}
        return record | {'choices': options, 'answers': [answer], 'truth': truth}


def _object_box(image: str | bytes) -> dict[str, list[float]]:
    """{'box': [x0, y0, x1, y1] in fractions} of a picture's only object; {} if it has several, or no file."""
    if isinstance(image, bytes) or not (file := epath.Path(image).with_suffix('.json')).exists():
        return {}
    try:
        boxes = json.loads(file.read_bytes())['bbox']
        if len(boxes) != 1:
            return {}
        x, y, width, height = map(float, boxes[0])
    except (ValueError, KeyError, TypeError):
        raise BadRecord('wrong box', f"{file} has no 'bbox' of [x, y, width, height]") from None
    try:
        with epath.Path(image).open('rb') as opened, Image.open(opened) as picture:
            across, down = picture.size
    except OSError as error:
        raise BadRecord('corrupt image', f'{image} is no image file: {error}') from None
    box = [x / across, y / down, (x + width) / across, (y + height) / down]
    box = [min(max(edge, 0.0), 1.0) for edge in box]
    if not (box[0] < box[2] and box[1] < box[3]):
        raise BadRecord('wrong box', f'the box in {file} is not within the picture')
    return {'box': [round(edge, 6) for edge in box]}
