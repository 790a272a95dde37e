"""InfoSeek: questions about what a picture shows, answered by a name, a time or a number.

`infoseek` is the 2,000 that MMSearch-R1 and the paper evaluate on, published with MMSearch-R1's code
(https://github.com/EvolvingLMMs-Lab/multimodal-search-r1) as mmsearch_r1_infoseek_sub_2k.parquet in the layout of FVQA.

`infoseek_val` is the validation set as its authors publish it (https://github.com/open-vision-language/infoseek):
infoseek_val.jsonl with data_id, image_id, question, answer, answer_eval, data_split, and infoseek_val_qtype.jsonl
with data_id and question_type (String, Numerical or Time). answer_eval is a list of texts or, for numbers,
of {wikidata, range}.
Images are OVEN's, by image_id; where they lie we could not confirm: they are looked for beside the files, in images/,
and in folders named by the first two digits of the id.
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import answer_texts, chat_record
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row, rows

SUFFIXES = '.jpg', '.JPEG', '.jpeg', '.png'
TYPES = 'infoseek_val_qtype.jsonl'


class Infoseek(PublishedSet):
    """InfoSeek: the 2,000 questions that the paper evaluates on."""

    name = 'infoseek'
    home = 'https://github.com/EvolvingLMMs-Lab/multimodal-search-r1'
    splits = {'test': Split(('*infoseek_sub_2k*.parquet',), 2000)}
    columns = ('prompt', 'images', 'reward_model')
    optional = ('data_id',)

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        return chat_record(row, place, file.parent)


class InfoseekVal(PublishedSet):
    """InfoSeek: the validation set, with the types and ranges that its own metric needs."""

    name = 'infoseek_val'
    home = 'https://github.com/open-vision-language/infoseek'
    splits = {'test': Split(('infoseek_val.jsonl',), 73_620)}
    columns = ('data_id', 'image_id', 'question', 'answer', 'answer_eval')
    optional = ('data_split',)

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        accepted = row['answer_eval']
        accepted = accepted if isinstance(accepted, list) else [accepted]
        ranges = [
            value['range'] for value in accepted if isinstance(value, dict) and 'range' in value
        ]
        truth: dict[str, Any] = {}
        if kind := _types(str(file.parent / TYPES)).get(row['data_id']):
            truth['question_type'] = kind
        if ranges:
            truth['range'] = [float(end) for end in ranges[0][:2]]
        return {
            'id': row['data_id'],
            'question': row['question'],
            'images': [_picture(str(row['image_id']), file.parent)],
            'answers': answer_texts(
                row['answer'], [a for a in accepted if not isinstance(a, dict)]
            ),
            'category': row.get('data_split') or '',
            'truth': truth,
        }


def _picture(image_id: str, folder: epath.Path) -> str:
    digits = image_id.rpartition('_')[2][:2]
    for part in ('', 'images', digits, f'images/{digits}'):
        for suffix in SUFFIXES:
            if (path := folder / part / f'{image_id}{suffix}').is_file():
                return str(path)
    raise BadRecord('missing image', f'there is no image {image_id}.jpg in {folder} or its images/')


@functools.lru_cache(maxsize=2)
def _types(file: str) -> dict[str, str]:
    """The questions' types; without the file InfoSeek's metric goes by the form of the answers."""
    if not epath.Path(file).is_file():
        return {}
    found = rows(file, ('data_id', 'question_type'), (), InfoseekVal.name)
    return {r['data_id']: r['question_type'] for _, r in found if not isinstance(r, BadRecord)}
