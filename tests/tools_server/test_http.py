"""The running server, driven by the client that the agent uses and, for broken requests, by plain
HTTP."""

import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_world import TITLES, encoded, picture, scene

from sensesearch_jax.agent.tool_client import ToolFailure


def test_health_names_the_back_ends(client):
    health = client.health()
    assert health['ready']
    assert health['backends'] == {
        'text_search': 'local',
        'image_search': 'local',
        'judge': 'rules',
        'crop': 'local',
    }


def test_openapi_page_types_every_tool(server):
    paths = requests.get(server.url + '/openapi.json', timeout=5).json()['paths']
    assert {
        '/images',
        '/images/{sha256}',
        '/crop',
        '/text_search',
        '/image_search',
        '/judge',
        '/health',
    } <= set(paths)
    assert requests.get(server.url + '/docs', timeout=5).status_code == 200


def test_upload_keeps_a_plain_file_byte_for_byte(client, tmp_path):
    data = encoded(picture(1), '.jpg')
    (tmp_path / 'a.jpg').write_bytes(data)
    ref = client.upload(tmp_path / 'a.jpg')
    assert (ref.sha256, ref.width, ref.height) == (hashlib.sha256(data).hexdigest(), 360, 270)
    assert client.upload(data) == ref
    assert client.image(ref.sha256) == data


def test_a_served_image_says_back_end_cache_hit_and_latency(server, client):
    ref = client.upload(encoded(picture(1), '.jpg'))
    headers = requests.get(f'{server.url}/images/{ref.sha256}', timeout=5).headers
    assert (headers['X-Backend'], headers['X-Cache-Hit'], headers['Content-Type']) == (
        'local', 'true', 'image/jpeg')  # fmt: skip
    assert float(headers['X-Latency-S']) > 0


def test_answers_say_back_end_cache_hit_and_latency(server):
    body = {'query': 'the capital of Algeria, once', 'top_k': 2}
    first, second = (
        requests.post(server.url + '/text_search', json=body, timeout=5).json() for _ in range(2)
    )
    assert (first['backend'], first['cache_hit'], second['cache_hit']) == ('local', False, True)
    assert first['results'] == second['results'] and first['latency_s'] > 0


def jpeg_with_orientation() -> bytes:
    image = Image.fromarray(picture(2))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', exif=exif)
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'data, size',
    [
        (jpeg_with_orientation(), (270, 360)),
        (saved(Image.fromarray(picture(2)).convert('CMYK'), 'JPEG'), (360, 270)),
        (saved(Image.fromarray(picture(2)).convert('P'), 'PNG'), (360, 270)),
        (saved(Image.fromarray(picture(2)).convert('RGBA'), 'PNG'), (360, 270)),
        (saved(Image.fromarray(picture(2)[..., 0].astype(np.uint16) * 257), 'PNG'), (360, 270)),
        (saved(Image.fromarray(picture(2)), 'WEBP'), (360, 270)),
        (
            saved(
                Image.fromarray(picture(2)),
                'GIF',
                save_all=True,
                append_images=[Image.fromarray(picture(3))],
            ),
            (360, 270),
        ),
    ],
    ids=['rotated', 'cmyk', 'palette', 'transparent', '16 bit', 'webp', 'animated'],
)
def test_unusual_images_become_upright_rgb_under_the_hash_of_what_is_served(client, data, size):
    ref = client.upload(data)
    assert (ref.width, ref.height) == size
    served = client.image(ref.sha256)
    assert hashlib.sha256(served).hexdigest() == ref.sha256
    with Image.open(io.BytesIO(served)) as image:
        assert (image.mode, image.size) == ('RGB', size)
        assert np.asarray(image).std() > 10  # still shows something


@pytest.mark.parametrize(
    'data, words',
    [
        (b'', 'not an image'),
        (b'hello', 'not an image'),
        (encoded(picture(1), '.jpg')[:2000], 'damaged'),
        (encoded(picture(1))[:3000], 'damaged'),
        (encoded(picture(1, 5, 1020)), 'more than 200 times'),
        (saved(Image.new('L', (5000, 5000)), 'PNG'), 'pixels'),
        (b'x' * 30_000_001, 'bytes'),
    ],
    ids=['empty', 'text', 'cut jpeg', 'cut png', 'sliver', 'too many pixels', 'too many bytes'],
)
def test_bad_images_are_the_callers_mistake(client, data, words):
    failure = client.upload(data)
    assert (
        isinstance(failure, ToolFailure) and failure.kind == 'caller' and words in failure.message
    )


def test_a_picture_lower_than_a_token_is_taken(client):
    """The vision tower's processor enlarges it; a crop of it may be as low as it is."""
    ref = client.upload(encoded(picture(1, 27, 332)))
    assert (ref.width, ref.height) == (332, 27)
    assert client.crop(ref.sha256, (0.0, 0.0, 0.5, 1.0)).height == 27
    assert 'at least 28' in client.crop(ref.sha256, (0.0, 0.0, 0.5, 0.5)).message
    for size in ((1, 1), (3, 332)):
        tiny = client.upload(encoded(picture(1, *size)))
        assert (tiny.height, tiny.width) == size and isinstance(
            client.image_search(tiny.sha256), list
        )


@pytest.fixture(scope='module')
def wall(client):
    return client.upload(encoded(scene(3, 200, (1500, 900)), '.jpg'))


def test_crop_is_cut_from_the_original_pixels(client):
    rng = np.random.default_rng(1)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 256, (54, 96, 3), dtype=np.uint8)).resize((3840, 2160))
    )
    original = client.upload(encoded(smooth))
    ref = client.crop(original.sha256, (0.25, 0.5, 0.5, 0.75))
    assert (ref.width, ref.height) == (960, 540)
    pixels = np.asarray(Image.open(io.BytesIO(client.image(ref.sha256)))).astype(int)
    assert abs(pixels - smooth[1080:1620, 960:1920]).mean() < 1.0
    # A crop of the crop comes from the original as well: the same file as the one cut directly.
    assert client.crop(ref.sha256, (0.0, 0.0, 0.5, 0.5)) == client.crop(
        original.sha256, (0.25, 0.5, 0.375, 0.625)
    )
    assert client.crop(original.sha256, (0.25, 0.5, 0.5, 0.75)) == ref


@pytest.mark.parametrize(
    'bbox, words',
    [
        ([0.1, 0.1, 1.2, 0.5], 'within [0, 1]'),
        ([-0.1, 0.1, 0.2, 0.5], 'within [0, 1]'),
        ([0.5, 0.1, 0.5, 0.5], 'x0 < x1'),
        ([0.5, 0.6, 0.7, 0.5], 'x0 < x1'),
        ([0.5, 0.5, 0.501, 0.9], 'at least 28'),
        ([0.1, 0.1, 0.2], 'bbox'),
        ([0.1, 0.1, 0.2, 0.3, 0.4], 'bbox'),
    ],
)
def test_bad_boxes_are_explained(client, wall, bbox, words):
    failure = client.crop(wall.sha256, bbox)
    assert (
        isinstance(failure, ToolFailure) and failure.kind == 'caller' and words in failure.message
    )


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '"left"', 'null'])
def test_boxes_that_are_no_numbers(server, client, wall, value):
    body = f'{{"image": "{wall.sha256}", "bbox": [{value}, 0, 1, 1]}}'
    answer = requests.post(
        server.url + '/crop', data=body, headers={'Content-Type': 'application/json'}, timeout=5
    )
    assert answer.status_code == 400 and answer.json()['kind'] == 'caller'
    assert client.crop(wall.sha256, [float('nan'), 0, 1, 1]).kind == 'caller'


@pytest.mark.parametrize(
    'path, body, status',
    [
        ('/crop', {'image': 'f' * 64, 'bbox': [0, 0, 1, 1]}, 404),
        ('/image_search', {'image': 'f' * 64}, 404),
        ('/crop', {'image': '../../etc/passwd', 'bbox': [0, 0, 1, 1]}, 400),
        ('/text_search', {'query': 'x', 'topk': 3}, 400),
        ('/text_search', {'query': 'x', 'top_k': 0}, 400),
        ('/text_search', ['x'], 400),
        ('/judge', {'question': 'q', 'references': [], 'response': 'r'}, 400),
        ('/nowhere', {}, 404),
    ],
)
def test_wrong_requests_get_a_kind_and_a_sentence(server, path, body, status):
    answer = requests.post(server.url + path, json=body, timeout=5)
    assert answer.status_code == status
    assert answer.json()['kind'] == 'caller' and answer.json()['message']


def test_body_that_is_no_json(server):
    for data in (b'{', b'\xff\xfe', b''):
        answer = requests.post(
            server.url + '/judge',
            data=data,
            headers={'Content-Type': 'application/json'},
            timeout=5,
        )
        assert answer.status_code == 400 and answer.json()['kind'] == 'caller'


def test_text_search_finds_and_cuts(client):
    found = client.text_search('capital of France', top_k=2)
    assert found[0].title == 'France — Capital' and 'Paris' in found[0].text and len(found) == 2
    long = next(
        p for p in client.text_search('When was the Eiffel tower built?') if 'History' in p.title
    )
    assert '1889' in long.text and len(long.text) <= 120 and '…' in long.text
    # accents do not matter
    assert client.text_search("national anthem cote d'ivoire")[0].title.startswith('Côte')
    assert client.text_search('xylophone') == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(query=st.one_of(st.text(max_size=200), st.text('():"\\*?~^[]{}+-!/ ANDORNOT', max_size=60)))
def test_any_query_is_answered(client, query):
    assert isinstance(client.text_search(query), list)


@pytest.mark.parametrize(
    'query', ['\ud800 capital', 'x' * 20_000, 'capital ' * 2000, '\x00', 'title:"', 'a AND (', '']
)
def test_strange_queries_are_answered(client, query):
    assert isinstance(client.text_search(query), list)


def test_image_search_needs_the_crop(client, wall):
    assert client.image_search(wall.sha256) == []  # the whole photograph, shrunk
    loose = client.crop(wall.sha256, (0.35, 0.35, 0.5, 0.55))
    best = client.image_search(loose.sha256)[0]
    assert best.title == TITLES[3] and best.score > 0.95
    thumbnail = Image.open(io.BytesIO(client.image(best.thumbnail.sha256)))
    assert thumbnail.size == (best.thumbnail.width, best.thumbnail.height) == (56, 56)
    bare = client.crop(wall.sha256, (0.05, 0.05, 0.2, 0.2))
    assert client.image_search(bare.sha256) == []


def test_judge(client):
    assert client.judge('q', ['Paris'], 'the paris.') is True
    assert client.judge('q', ['Paris'], 'Yes') is False
    assert client.judge('q', ['B'], 'The answer is (B).') is True


def test_slow_work_does_not_hold_up_the_others(client, server):
    data = [
        encoded(np.random.default_rng(i).integers(0, 256, (1600, 2400, 3), dtype=np.uint8))
        for i in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        uploads = [pool.submit(client.upload, item) for item in data]
        time.sleep(0.05)
        start = time.perf_counter()
        assert client.health()['ready']
        assert time.perf_counter() - start < 1.0
        assert all(upload.result().width == 2400 for upload in uploads)


def test_identical_requests_at_once_are_worked_on_once(client, server):
    before = client.health()['cache']['text_search']
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda _: client.text_search('asked by a whole group at once'), range(8))
        )
    after = client.health()['cache']['text_search']
    assert all(result == results[0] for result in results)
    assert after['misses'] - before['misses'] == 1 and after['hits'] - before['hits'] == 7


def test_text_of_a_result_is_data(client):
    text = client.text_search('zanzibar')[0].text
    # the server passes text on as it is; the agent's protocol disarms it
    assert '<tool_call>' in text
    assert json.dumps(text)
