"""The review: decisions are kept at once, and the page works in a real browser."""

import contextlib
import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripted_tools import noise_file
from served_app import served

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.review.__main__ import main
from sensesearch_jax.data.review.app import create_app, shown
from sensesearch_jax.data.review.decisions import Decisions
from sensesearch_jax.errors import UserError

BOX = [0.25, 0.5, 0.375, 0.75]


@pytest.fixture
def questions(tmp_path):
    return [
        Question(
            f'q{i}',
            f'What is {i}?',
            images=(noise_file(tmp_path / f'{i}.png', 320, 180, i),),
            answers=(f'thing {i}', f'the thing {i}'),
            category='sports' if i else 'games',
            truth={'box': BOX, 'right': i, 'samples': 8},
        )
        for i in range(3)
    ]


@contextlib.contextmanager
def opened(questions, folder):
    decisions = Decisions(questions, folder / 'decisions.jsonl', folder / 'accepted.jsonl')
    try:
        yield decisions
    finally:
        decisions.close()


def accepted(folder):
    return [json.loads(line)['id'] for line in (folder / 'accepted.jsonl').read_text().splitlines()]


def test_a_decision_is_on_disk_when_it_is_made_and_the_newest_counts(questions, tmp_path):
    with opened(questions, tmp_path) as decisions:
        assert accepted(tmp_path) == []
        decisions.decide('q2', 'accept', '')
        decisions.decide('q0', 'accept', 'clear')
        assert accepted(tmp_path) == ['q0', 'q2']
        decisions.decide('q2', 'reject', 'blurred')
        decisions.decide('q0', '', '')
        assert accepted(tmp_path) == []
    with opened(questions, tmp_path) as again:
        assert [again.verdict(q.id) for q in questions] == ['', '', 'reject']
        assert again.note('q2') == 'blurred'


def test_a_torn_line_costs_no_other_decision(questions, tmp_path):
    with opened(questions, tmp_path) as decisions:
        decisions.decide('q1', 'accept', '')
    with open(tmp_path / 'decisions.jsonl', 'a') as file:
        file.write('{"id": "q2", "verd')
    with opened(questions, tmp_path) as decisions:
        assert decisions.verdict('q1') == 'accept' and decisions.verdict('q2') == ''


def test_a_question_that_was_changed_is_open_again(questions, tmp_path):
    with opened(questions, tmp_path) as decisions:
        decisions.decide('q1', 'accept', '')
    changed = [Question('q1', 'Another question?', answers=('it',))]
    with opened(changed, tmp_path) as decisions:
        assert decisions.verdict('q1') == '' and accepted(tmp_path) == []


def test_one_review_at_a_time(questions, tmp_path):
    with opened(questions, tmp_path):
        with pytest.raises(UserError, match='another review is at .*end it first'):
            with opened(questions, tmp_path):
                pass


@pytest.fixture
def client(questions, tmp_path):
    with opened(questions, tmp_path) as decisions:
        yield TestClient(create_app(decisions, 'mine'), base_url='http://127.0.0.1')


def test_only_this_machine_s_own_page_may_decide(client, tmp_path):
    decision = {'id': 'q0', 'verdict': 'accept'}
    text = json.dumps(decision)
    assert (
        client.post('/decisions', json=decision, headers={'Host': 'evil.example'}).status_code
        == 400
    )
    # A form or a script of another site can send these types alone without being asked.
    for kind in ('text/plain', 'application/x-www-form-urlencoded'):
        sent = client.post('/decisions', content=text, headers={'Content-Type': kind})
        assert sent.status_code == 422
    assert accepted(tmp_path) == []
    assert client.post('/decisions', json=decision).status_code == 200
    assert accepted(tmp_path) == ['q0']


def test_what_is_not_there_is_refused(client):
    assert client.post('/decisions', json={'id': 'q9', 'verdict': 'accept'}).status_code == 404
    assert client.post('/decisions', json={'id': 'q0', 'verdict': 'perhaps'}).status_code == 422
    assert client.get('/items/0/images/1').status_code == 404
    assert client.get('/items/9/images/0').status_code == 404


def test_an_image_is_served_as_a_browser_shows_it_upright(tmp_path, client):
    served = client.get('/items/1/images/0')
    assert served.content == (tmp_path / '1.png').read_bytes()
    assert served.headers['content-type'] == 'image/png'
    turned = Image.new('RGB', (40, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / 'turned.jpg', exif=exif)
    data, kind = shown((tmp_path / 'turned.jpg').read_bytes())
    (tmp_path / 'shown.jpg').write_bytes(data)
    assert kind == 'image/jpeg' and Image.open(tmp_path / 'shown.jpg').size == (30, 40)


def test_a_missing_image_is_said(questions, tmp_path, client):
    (tmp_path / '1.png').unlink()
    answer = client.get('/items/1/images/0')
    assert answer.status_code == 404 and 'cannot be read' in answer.json()['detail']


def test_a_source_that_cannot_be_reviewed_ends_with_a_sentence(tmp_path, capsys):
    assert main([str(tmp_path / 'absent.jsonl')]) == 2
    assert capsys.readouterr().err.startswith('review: ')
    (tmp_path / 'bad.jsonl').write_text('{"id": "a", "question": "What?"}\n')
    assert main([str(tmp_path / 'bad.jsonl')]) == 2


@contextlib.contextmanager
def reviewed(questions, folder):
    """The address of a running review."""
    with opened(questions, folder) as decisions, served(create_app(decisions, 'mine')) as address:
        yield address


def question_shown(page, number):
    """Waits until a question is on the page with its picture."""
    page.wait_for_function(
        f"document.getElementById('question').textContent === 'What is {number}?'"
        " && document.querySelector('.frame img')?.naturalWidth > 0"
    )


def test_a_person_looks_accepts_and_rejects_by_key_and_click(questions, tmp_path, page):
    with reviewed(questions, tmp_path) as address:
        page.goto(address)
        question_shown(page, 0)
        picture = page.locator('.frame img').bounding_box()
        box = page.locator('.frame .box').bounding_box()
        x0, y0, x1, y1 = BOX
        assert box['x'] == pytest.approx(picture['x'] + x0 * picture['width'], abs=1)
        assert box['y'] == pytest.approx(picture['y'] + y0 * picture['height'], abs=1)
        assert box['width'] == pytest.approx((x1 - x0) * picture['width'], abs=1)
        assert box['height'] == pytest.approx((y1 - y0) * picture['height'], abs=1)
        assert 'url(' in page.locator('#zoom').evaluate('e => e.style.backgroundImage')
        tags = page.inner_text('#tags')
        assert all(part in tags for part in ('1 / 3', 'q0', 'games', 'right 0 of 8', 'box 3.13 %'))
        assert page.inner_text('#answers') == 'thing 0\nalso: the thing 0'
        page.keyboard.press('a')
        question_shown(page, 1)
        assert accepted(tmp_path) == ['q0']
        page.keyboard.press('n')
        page.keyboard.type('a rather blurred one')  # whose letters decide nothing
        assert accepted(tmp_path) == ['q0'] and page.inner_text('#question') == 'What is 1?'
        page.keyboard.press('Escape')
        page.click('#reject')
        question_shown(page, 2)
        assert page.inner_text('#progress') == '2 of 3 decided · 1 accepted · 1 rejected'
        assert 'games' in page.inner_text('#shares')
    with reviewed(questions, tmp_path) as address:  # it goes on where it stopped
        page.goto(address)
        question_shown(page, 2)
        page.select_option('#filter', 'reject')
        question_shown(page, 1)
        assert page.input_value('#note') == 'a rather blurred one'
        page.click('#accept')
        # Saved while the filter passes no other, so that the page stays where it is.
        page.wait_for_function(
            "document.getElementById('accept').getAttribute('aria-pressed') === 'true'"
        )
        page.select_option('#filter', 'all')
        page.keyboard.press('ArrowRight')
        question_shown(page, 2)
        page.keyboard.press('a')
        page.wait_for_function(
            "document.getElementById('progress').textContent.includes('all decided')"
        )
        assert accepted(tmp_path) == ['q0', 'q1', 'q2']


def test_a_decision_that_was_not_saved_is_said_and_stays_open(questions, tmp_path, page):
    with reviewed(questions, tmp_path) as address:
        page.goto(address)
        question_shown(page, 0)
        page.route('**/decisions', lambda route: route.abort())
        page.keyboard.press('a')
        page.wait_for_selector('#problem:not([hidden])')
        assert 'q0 is not saved' in page.inner_text('#problem')
        assert page.inner_text('#question') == 'What is 0?'
        page.unroute('**/decisions')
        page.keyboard.press('a')
        question_shown(page, 1)
        assert page.locator('#problem').is_hidden() and accepted(tmp_path) == ['q0']
