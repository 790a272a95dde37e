"""MME-RealWorld: 23,599 questions with five options, the last of which says that the picture does not show it.

Two layouts, as the authors publish them and as lmms-eval and others read them:
https://huggingface.co/datasets/yifanzhang114/MME-RealWorld has MME_RealWorld.json, a list of {Question_id, Image, Text,
'Answer choices', 'Ground truth', Category, Subtask, Task}, over the unpacked folders of images;
…/MME-RealWorld-Lmms-eval has Parquet files with index, question, bytes (base64 text), answer, 'multi-choice options',
category (such as Perception/Remote Sensing) and l2-category. The set's Avg is over questions; its Avg-C is over the
categories, which are task and domain here, with the finer one in truth['subcategory'].
"""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

from etils import epath

from sensesearch_jax.data.published.fields import base64_image, images_of, without_placeholders
from sensesearch_jax.data.published.options import letter_place, without_marks
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

JSON_COLUMNS = ('Question_id', 'Image', 'Text', 'Answer choices', 'Ground truth', 'Subtask', 'Task')
PARQUET_COLUMNS = ('index', 'bytes', 'question', 'answer', 'multi-choice options', 'category')


class MmeRealworld(PublishedSet):
    """MME-RealWorld: questions with five options about large pictures of five domains."""

    name = 'mme_realworld'
    home = 'https://huggingface.co/datasets/yifanzhang114/MME-RealWorld'
    licence = 'Apache-2.0'
    splits = {
        'test': Split(('MME_RealWorld.json', 'data/train-*.parquet', 'train-*.parquet'), 23_599)
    }
    optional = ('l2-category',)

    @classmethod
    def columns_of(cls, file: epath.Path) -> tuple[str, ...]:
        """The columns of the layout that the file's suffix tells."""
        return JSON_COLUMNS if file.suffix == '.json' else PARQUET_COLUMNS

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        if 'Question_id' in row:
            image, parts = str(row['Image'] or ''), str(row['Image'] or '').split('/')
            # Archives hold a folder of their own name, so that unpacked ones may be one level deeper.
            images = images_of(image, file.parent, inside=('', parts[0], 'images', 'imgs'))
            name, question = row['Question_id'], row['Text']
            options, answer = row['Answer choices'], row['Ground truth']
            category, finer = f'{row["Task"]}/{row["Subtask"]}', row.get('Category')
        else:
            images = [base64_image(str(row['bytes'] or ''))]
            name, question = row['index'], row['question']
            options, answer = row['multi-choice options'], row['answer']
            category, finer = row['category'], row.get('l2-category')
        choices = without_marks([str(option) for option in options or []])
        return {
            'id': f'{cls.name}-{name}' if str(name).isdigit() else str(name),
            'question': without_placeholders(str(question or '')),
            'images': images,
            'choices': choices,
            'answers': [ascii_uppercase[letter_place(answer, len(choices))]],
            'category': str(category or ''),
            'reward': 'letter',
            'truth': {'subcategory': str(finer)} if finer else {},
        }
