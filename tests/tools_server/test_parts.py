"""Parts of the server on their own: snippets, rules of the judge, regions, cache, descriptors."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import picture, scene

from tools_server.backends.descriptors import describe, likeness
from tools_server.backends.judge_rules import RuleJudge
from tools_server.backends.regions import find_regions
from tools_server.backends.snippet import snippet
from tools_server.backends.text_analysis import analyser
from tools_server.cache import Cache

WORDS = analyser().analyze
LONG = (
    'Capital: name: Paris; founded: in 250 B.C. by the Parisii; note: '
    + 'so many words ' * 30
    + '; river: Seine'
)


def test_snippet_keeps_the_fields_asked_for():
    assert snippet('short', 'anything', 40, WORDS) == 'short'
    cut = snippet(LONG, 'which rivers', 60, WORDS)
    assert 'river: Seine' in cut and '…' in cut and len(cut) <= 60
    assert snippet(LONG, 'capital', 60, WORDS).startswith('Capital: name: Paris;')
    assert snippet('x' * 500, 'x', 40, WORDS) == 'x' * 39 + '…'
    middle = snippet('aa ' * 200 + 'needle ' + 'bb ' * 200, 'needle', 50, WORDS)
    assert 'needle' in middle and middle.startswith('…') and middle.endswith('…')


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(' .;!?\nabc…é', max_size=400),
    query=st.text('abc ', max_size=20),
    limit=st.integers(40, 120),
)
def test_snippet_never_exceeds_its_limit(text, query, limit):
    assert len(snippet(text, query, limit, WORDS)) <= limit


@pytest.mark.parametrize(
    'reference, response, right',
    [
        ('Paris', ' the PARIS! ', True),
        ('Paris', 'Paris, France', False),
        ('8,848 m', '8848 m.', True),
        ('8848.0', '8,848', True),
        ('-5', '5', False),
        ('3.5', '35', False),
        ('1889', 'in 1889', False),
        ('1975.1.1', '1975.10.1', False),
        ('1' * 40, '1' * 39 + '2', False),
        ("L'Abidjanaise", 'L’Abidjanaise', True),
        ('.ad', 'AD', True),
        ('oil on canvas', 'Oil-on-canvas', True),
        ('Ελλάδα', 'ελλάδα', True),
        ('B', 'B', True),
        ('B', '(b)', True),
        ('B', 'B. a red flag', True),
        ('B', 'The answer is B.', True),
        ('B', 'Answer: B', True),
        ('B', 'Big', False),
        ('A', 'a dog', False),
        ('B', 'A or B', False),
        ('', '', False),
        ('Paris', '', False),
        ('The', 'a', False),
    ],
)
def test_rules(reference, response, right):
    assert RuleJudge().judge('q', ['something else', reference], response, ()) is right


def test_regions_are_found_where_the_picture_hangs():
    wall = scene(1, 200, (300, 150), size=(800, 500))
    boxes = np.array([(r.left, r.top, r.right, r.bottom) for r in find_regions(wall, 48)])
    assert (abs(boxes - (294, 144, 506, 306)).max(axis=1) <= 2).any()  # with its frame
    assert find_regions(wall, 48, min_area=0.2 * 800 * 500) == []
    assert find_regions(np.zeros((30, 30, 3), np.uint8), 28) == []


def test_descriptor_is_the_mean_of_each_cell():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    vector = describe(image, np.array([[0.0, 0.0, 96.0, 64.0]]))[0]
    cells = image.reshape(16, 4, 16, 6, 3).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(vector, cells - cells.mean(), atol=1e-3)
    tiny = describe(image, np.array([[3.0, 3.0, 8.0, 8.0]]))  # cells of less than a pixel
    assert np.isfinite(tiny).all()


def test_likeness_punishes_missing_contrast():
    pictures = np.concatenate(
        [describe(picture(i), np.array([[0.0, 0.0, 360.0, 270.0]])) for i in range(4)]
    )
    alike = likeness(pictures, pictures)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
    assert alike[~np.eye(4, dtype=bool)].max() < 0.8
    assert likeness(pictures[:1] * 0.1, pictures[:1])[0, 0] < 0.25
    assert likeness(np.zeros((1, 768), np.float32), pictures).max() == 0


def test_cache_is_bounded_and_computes_once():
    cache = Cache(10, weigh=len)
    for number in range(5):
        cache.put(number, 'abcd')
    assert cache.statistics()['entries'] == 2
    assert cache.get_or_compute(4, lambda: 'new') == ('abcd', True)
    cache.put('large', 'x' * 11)  # larger than the whole cache: not kept
    assert cache.get_or_compute('large', lambda: 'y') == ('y', False)
    calls, together = [], threading.Barrier(8)

    def compute() -> str:
        calls.append(1)
        return 'z'

    def ask(_: int) -> str:
        together.wait()
        return cache.get_or_compute('once', compute)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {'z'}
    assert len(calls) == 1


def test_cache_keeps_no_failure():
    cache = Cache(10)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute('k', lambda: 1 / 0)
    assert cache.get_or_compute('k', lambda: 5) == (5, False)
