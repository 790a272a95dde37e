"""The released data of SenseNova-MARS: its training pools and, in the same layout, all its benchmarks.

Layout, as the project's repository shows it (https://github.com/OpenSenseNova/SenseNova-MARS; the data at
https://huggingface.co/datasets/sensenova/SenseNova-MARS-Data): a manifest, train_qwen3_vl_8b.json or test_all.json,
of {name: {root, annotation, length, repeat_time, reward_fn, unused_reward_fn, input_template}}, and for each name a
JSONL file of {prompt, image, reward_model {ground_truth}, image_search_title_list, image_search_thumbnail_list}.
Paths begin at the manifest's folder, those of images at a part's root. SRC is the folder of the manifests.

A part's name becomes the category, so that `category` of a source picks it; repeat_time becomes the weight.
The system prompts of input_template belong to another protocol and are not used. The prefetched image searches are
the tool server's: `python -m tools_server.build_index results` makes its back end 'prefetched' of the same manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import (
    answer_texts,
    images_of,
    prompt_question,
    with_options,
)
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row, rows
from sensesearch_jax.errors import UserError

LETTERS = 'em_score_mcq'  # the reward of parts with options


class SensenovaMars(PublishedSet):
    """SenseNova-MARS: searches and small things, selected for training, and the benchmarks beside them."""

    name = 'sensenova_mars'
    home = 'https://huggingface.co/datasets/sensenova/SenseNova-MARS-Data'
    licence = 'MIT'
    splits = {
        'train': Split(('train*.json',), 3859),
        'test': Split(('test_all.json', 'test*.json'), 10_832),
    }
    columns = ('prompt', 'image', 'reward_model')
    optional = ('index',)

    @classmethod
    def records(
        cls, folder: epath.PathLike, split: str
    ) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        """See `PublishedSet.records`; the files are manifests."""
        for manifest in cls.split_files(folder, split):
            for part, entry in _parts(manifest).items():
                yield from cls._part(manifest, part, entry)

    @classmethod
    def _part(
        cls, manifest: epath.Path, part: str, entry: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        annotation, root = manifest.parent / entry['annotation'], manifest.parent / entry['root']
        fields = {
            'category': part,
            'weight': float(entry.get('repeat_time', 1.0)),
            'letters': LETTERS in [*entry.get('reward_fn', ()), *entry.get('unused_reward_fn', ())],
        }
        count = 0
        for place, row in rows(annotation, cls.columns, cls.optional, cls.name):
            if not isinstance(row, BadRecord):
                row = {'index': count, **row, **fields}
            count += 1
            yield from cls._of_row(row, f'{part}/{place}', root / annotation.name)
        if count != entry.get('length', count):
            raise UserError(
                f'{annotation} has {count} records, but {manifest} says {entry["length"]}; download it again'
            )

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row, to which the fields of its part were added."""
        reward = row['reward_model'] if isinstance(row['reward_model'], Mapping) else {}
        record = {
            'id': f'{row["category"]}-{row["index"]}',
            'question': prompt_question(row['prompt']),
            'images': images_of(row['image'], file.parent),
            'answers': answer_texts(reward.get('ground_truth')),
            'category': row['category'],
            'weight': row['weight'],
        }
        return with_options(record | {'reward': 'exact'}) if row['letters'] else record


def _parts(manifest: epath.Path) -> dict[str, Mapping[str, Any]]:
    try:
        parts = json.loads(manifest.read_text())
    except ValueError as error:
        raise UserError(f'{manifest} is not whole JSON ({error}); download it again') from None
    for name, entry in parts.items() if isinstance(parts, dict) else [('it', parts)]:
        if not isinstance(entry, dict) or not {'root', 'annotation'} <= set(entry):
            raise UserError(
                f'{manifest} is no manifest of SenseNova-MARS: {name} has no root and annotation'
            )
    return parts
