"""Indexes on disk: built by the command a user types, and searched like what is in memory."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_world import TITLES, encoded, picture, scene

from tools_server.backends.image_index import IndexedImageSearch
from tools_server.backends.image_local import LocalImageSearch
from tools_server.backends.text_local import IndexedTextSearch, LocalTextSearch
from tools_server.build_index import main
from tools_server.config import ConfigError, ImageStoreConfig, parse_config
from tools_server.images import ImageStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def indexes(world, tmp_path_factory):
    """The world's passages and gallery as indexes."""
    folder = tmp_path_factory.mktemp('indexes')
    assert main(['text', str(world / 'passages.jsonl'), str(folder / 'text')]) == 0
    assert main(['images', str(world / 'gallery.jsonl'), str(folder / 'images')]) == 0
    return folder


def test_text_index_answers_as_memory_does(world, indexes):
    fields = {'backend': 'local', 'passages': str(world / 'passages.jsonl'), 'max_chars': 120}
    memory = LocalTextSearch(parse_config({'text_search': fields}).text_search)
    fields = {'backend': 'index', 'index': str(indexes / 'text'), 'max_chars': 120}
    disk = IndexedTextSearch(parse_config({'text_search': fields}).text_search)
    for query in (
        'capital of France',
        'When was the Eiffel tower built?',
        "anthem cote d'ivoire",
        'xylophone',
        '',
    ):
        assert disk.search(query, 3) == memory.search(query, 3)


def test_corpora_of_search_r1_are_read(tmp_path, capsys):
    lines = [
        {'id': '0', 'contents': '"Eiffel Tower"\nIt is 330 m high.'},
        {'title': 'T', 'text': 'other'},
    ]
    (tmp_path / 'c.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    assert main(['text', str(tmp_path / 'c.jsonl'), str(tmp_path / 'index')]) == 0
    search = IndexedTextSearch(
        parse_config(
            {'text_search': {'backend': 'index', 'index': str(tmp_path / 'index')}}
        ).text_search
    )
    (found,) = search.search('how high is the tower', 1)
    assert (found.title, found.text) == ('Eiffel Tower', 'It is 330 m high.')


@pytest.fixture
def store():
    store = ImageStore(ImageStoreConfig())
    yield store
    store.close()


FIELDS = {'upload_side': 640, 'min_share': 0.05, 'min_similarity': 0.93}


def test_picture_index_finds_what_comparing_all_finds(world, indexes, store):
    fields = FIELDS | {'backend': 'local', 'gallery': str(world / 'gallery.jsonl')}
    every = LocalImageSearch(parse_config({'image_search': fields}).image_search, store)
    fields = FIELDS | {'backend': 'index', 'index': str(indexes / 'images')}
    indexed = IndexedImageSearch(parse_config({'image_search': fields}).image_search, store)
    wall = scene(3, 200, (1500, 900))
    for pixels in (wall, wall[756:1188, 1344:1920], *map(picture, range(8))):
        image, _ = store.add(encoded(pixels))
        assert indexed.search(image, 5) == every.search(image, 5)
    best = indexed.search(store.add(encoded(picture(2)))[0], 1)[0]
    assert best.title == TITLES[2] and store.get(best.thumbnail.sha256).pixels().shape == (
        56,
        56,
        3,
    )


def test_a_folder_of_pictures_becomes_an_index(tmp_path, store, capsys):
    folder = tmp_path / 'pictures'
    (folder / 'sub').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(60):  # more than an exhaustive look at a few would find by chance
        pixels = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        (folder / 'sub' / f'number_{number}.png').write_bytes(encoded(pixels))
    (folder / 'broken.jpg').write_bytes(b'no picture')
    (folder / 'notes.txt').write_text('not looked at')
    assert main(['images', str(folder), str(tmp_path / 'index')]) == 0
    assert 'broken.jpg is left out' in capsys.readouterr().err
    fields = FIELDS | {'backend': 'index', 'index': str(tmp_path / 'index')}
    search = IndexedImageSearch(parse_config({'image_search': fields}).image_search, store)
    for number in range(60):
        image, _ = store.add((folder / 'sub' / f'number_{number}.png').read_bytes())
        assert search.search(image, 1)[0].title == f'number {number}'


def test_mistakes_get_one_sentence_and_leave_nothing_behind(world, indexes, tmp_path, capsys):
    (tmp_path / 'bad.jsonl').write_text('{"title": "a", "text": "b"}\n[1]\n')
    (tmp_path / 'empty').mkdir()
    for arguments, words in {
        ('text', 'nowhere.jsonl', tmp_path / 'i'): 'there is no nowhere.jsonl',
        ('text', tmp_path / 'bad.jsonl', tmp_path / 'i'): 'line 2',
        ('images', tmp_path / 'empty', tmp_path / 'i'): 'no pictures',
        ('text', world / 'passages.jsonl', indexes / 'text'): 'exists',
    }.items():
        assert main([str(argument) for argument in arguments]) == 1
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.jsonl', 'empty']


def test_half_an_index_is_none(indexes, tmp_path, store):
    shutil.copytree(indexes / 'images', tmp_path / 'images')
    (tmp_path / 'images' / 'index.json').unlink()
    fields = {'backend': 'index', 'index': str(tmp_path / 'images')}
    with pytest.raises(ConfigError, match='build_index images'):
        IndexedImageSearch(parse_config({'image_search': fields}).image_search, store)
    with pytest.raises(ConfigError, match='build_index text'):
        IndexedTextSearch(parse_config({'text_search': fields}).text_search)
