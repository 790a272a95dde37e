"""Image searches that a data set brings along, served by a real server: found by the picture's content alone."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_files import sensenova_mars
from small_world import encoded
from small_world import picture as pixels_of
from table_files import picture

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.backends.image_prefetched import PrefetchedImageSearch
from tools_server.build_index import main
from tools_server.config import ConfigError, ImageStoreConfig, load_config, parse_config
from tools_server.images import ImageStore
from tools_server.launch import ToolServer

ROOT = Path(__file__).parents[2]


def turned_jpeg(number: int) -> bytes:
    """A JPEG that its EXIF data turns, which a store keeps as a PNG."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels_of(number)).save(buffer, 'JPEG', exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """Released data, one picture of it turned, one a WEBP, and their image searches built by the command."""
    folder = tmp_path_factory.mktemp('released')
    sensenova_mars(folder)
    images = folder / 'data' / 'deepeyes_4k_train_mcq' / 'images'
    (images / '0.jpg').write_bytes(turned_jpeg(3))
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(4)).save(buffer, 'WEBP', lossless=True)
    (images / '1.jpg').write_bytes(buffer.getvalue())
    assert main(['results', str(folder / 'train_small.json'), str(folder / 'index')]) == 0
    return folder


@pytest.fixture(scope='module')
def client(released, tmp_path_factory):
    config = {
        'image_search': {'backend': 'prefetched', 'index': str(released / 'index')},
        'judge': {'backend': 'rules'},
    }
    with ToolServer.start(config, tmp_path_factory.mktemp('server'), ready_timeout_s=120) as server:
        yield ToolClient(server.url)


def test_a_picture_finds_what_was_fetched_for_it(released, client):
    for number in range(2):
        image = client.upload(released / 'data' / 'fvqa_train' / 'images' / f'{number}.jpg')
        first, second = client.image_search(image.sha256, top_k=5)
        assert (first.title, second.title) == (f'fvqa_train {number}', 'Another page')
        assert first.score > second.score
        thumbnail = np.asarray(Image.open(io.BytesIO(client.image(first.thumbnail.sha256))))
        wanted = np.asarray(Image.open(io.BytesIO(picture(100 + number))))
        assert thumbnail.shape == wanted.shape == (48, 64, 3)
        assert np.abs(thumbnail.astype(int) - wanted).mean() < 8  # encoded anew
        assert len(client.image_search(image.sha256, top_k=1)) == 1


def test_so_does_one_that_the_server_keeps_in_another_form(released, client):
    for number in range(2):
        file = released / 'data' / 'deepeyes_4k_train_mcq' / 'images' / f'{number}.jpg'
        image = client.upload(file)
        assert image.sha256 != hashlib.sha256(file.read_bytes()).hexdigest()
        assert (
            client.image_search(image.sha256, top_k=5)[0].title == f'deepeyes_4k_train_mcq {number}'
        )


def test_other_pictures_and_crops_find_nothing(released, client):
    assert client.image_search(client.upload(encoded(pixels_of(7))).sha256, top_k=5) == []
    image = client.upload(released / 'data' / 'fvqa_train' / 'images' / '0.jpg')
    crop = client.crop(image.sha256, (0.0, 0.0, 0.6, 0.7))
    assert client.image_search(crop.sha256, top_k=5) == []


def test_health_names_it(client):
    assert client.health()['backends']['image_search'] == 'prefetched'


def test_the_committed_configuration_needs_no_key(released, monkeypatch):
    for name in [name for name in os.environ if name.endswith('_KEY')]:
        monkeypatch.delenv(name)
    changes = {'image_search': {'index': str(released / 'index')}}
    config = load_config(ROOT / 'configs' / 'tools_released.yaml', changes)
    assert config.image_search.backend == 'prefetched' and config.judge.api_key_env is None
    with pytest.raises(ConfigError, match='image_search.index'):
        load_config(ROOT / 'configs' / 'tools_released.yaml', {'image_search': {'index': 'gone'}})


@pytest.fixture
def store():
    store = ImageStore(ImageStoreConfig())
    yield store
    store.close()


def searches(folder, store):
    config = parse_config({'image_search': {'backend': 'prefetched', 'index': str(folder)}})
    return PrefetchedImageSearch(config.image_search, store)


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, store, capsys):
    file = sensenova_mars(tmp_path)[0]
    (file.parent / 'images' / '0.jpg').unlink()
    (file.parent / 'thumbs' / '1_0.jpg').write_bytes(b'no picture')
    assert main(['results', str(file), str(tmp_path / 'index')]) == 0
    shown = capsys.readouterr()
    assert '1 pictures with results' in shown.out
    assert 'data.jsonl:1: ' in shown.err and '1_0.jpg (the data is not an image' in shown.err
    found = searches(tmp_path / 'index', store)
    image, _ = store.add((file.parent / 'images' / '1.jpg').read_bytes())
    assert len(found) == 1 and [m.title for m in found.search(image, 5)] == ['Another page']


def test_large_thumbnails_are_made_smaller(tmp_path, store):
    file = sensenova_mars(tmp_path)[0]
    (file.parent / 'thumbs' / '0_0.jpg').write_bytes(picture(1, size=(600, 300)))
    side = '--thumbnail_side=200'
    assert main(['results', str(file), str(tmp_path / 'index'), side]) == 0
    image, _ = store.add((file.parent / 'images' / '0.jpg').read_bytes())
    first, second = searches(tmp_path / 'index', store).search(image, 5)
    assert (first.thumbnail.width, first.thumbnail.height) == (200, 100)
    assert (second.thumbnail.width, second.thumbnail.height) == (64, 48)


def test_the_fingerprint_is_of_titles_and_thumbnails(tmp_path, store):
    file = sensenova_mars(tmp_path)[0]
    prints = []
    for change in ('nothing', 'nothing', 'title', 'thumbnail'):
        if change == 'title':
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            rows[0]['image_search_title_list'][0] = 'Another title'
            file.write_text('\n'.join(map(json.dumps, rows)))
        if change == 'thumbnail':
            (file.parent / 'thumbs' / '0_0.jpg').write_bytes(picture(77))
        folder = tmp_path / f'index_{len(prints)}'
        assert main(['results', str(file), str(folder)]) == 0
        prints.append(searches(folder, store).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_mistakes_get_one_sentence(tmp_path, store, capsys):
    (tmp_path / 'other.json').write_text('{"a": {"root": "."}}')
    (tmp_path / 'gone.json').write_text('{"a": {"root": ".", "annotation": "gone.jsonl"}}')
    (tmp_path / 'empty.jsonl').write_text('{"image": "a.jpg"}\n')
    (tmp_path / 'cut.jsonl').write_text('{"image": ')
    for name, words in {
        'other.json': 'is no manifest',
        'gone.json': 'which is not there',
        'empty.jsonl': 'no picture has prefetched results',
        'cut.jsonl': 'line 1 is not JSON',
    }.items():
        assert main(['results', str(tmp_path / name), str(tmp_path / 'index')]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / 'index').exists()
    (tmp_path / 'half').mkdir()
    with pytest.raises(ConfigError, match='build_index results'):
        searches(tmp_path / 'half', store)
