"""The page on which questions are asked, with a toy policy and tools of this process, in a real browser."""

import runpy
import threading
from pathlib import Path

import jax
import pytest
from fastapi.testclient import TestClient
from scripted_tools import ScriptedTools, noise_file
from served_app import served

from sensesearch_jax.agent.actions import Answer, ImageCrop, ImageSearch
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import ParsedTurn
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.ask import check_ask
from sensesearch_jax.recipes.ask_page import create_app
from sensesearch_jax.recipes.session import Session, load_policy_directory
from sensesearch_jax.runtime.mesh import make_mesh

ROOT = Path(__file__).parents[2]
BOX = (0.25, 0.5, 0.75, 1.0)
ACTIONS = ImageCrop(BOX), ImageSearch(2), Answer('this one')


class Tools(ScriptedTools):
    """Tools that take pictures alone, and wait at `gate` before they search."""

    def __init__(self):
        super().__init__(delay=self.waits)
        self.gate = threading.Event()
        self.gate.set()

    def waits(self, method, what):
        if method == 'image_search':
            self.gate.wait(60)
        return 0.0

    def upload(self, image):
        if isinstance(image, bytes) and not image.startswith(b'\x89PNG'):
            return ToolFailure('caller', 'the data is not an image of a known format')
        return super().upload(image)


def config_of(**changes):
    config = runpy.run_path(str(ROOT / 'configs' / 'ask.py'))['get_config']()
    config.ask.update(changes)
    return config


@pytest.fixture
def asking(policy_folder, monkeypatch):
    """The application and its tools; its policy crops, searches and answers, whatever it writes."""
    acts = []

    def parse(self, text):
        acts.append(text)
        return ParsedTurn('A thought.', ACTIONS[(len(acts) - 1) % len(ACTIONS)])

    monkeypatch.setattr(Environment, 'parse', parse)
    config = config_of(page=True)
    config.agent.update(max_turns=3, turn_tokens=6, passage_chars=30, image_results=2)
    config.rollout.update(chunk=4, suffix_capacity=384)
    one_device = make_mesh({}, jax.devices()[:1])
    loaded = load_policy_directory(policy_folder, config, one_device, 'float32')
    tools = Tools()
    session = Session(config, None, tools, None, one_device)
    yield create_app(session, loaded, session.features(loaded)), tools, acts
    tools.gate.set()


def test_a_browser_asks_watches_stops_and_asks_again(asking, page, tmp_path):
    app, tools, acts = asking
    (tmp_path / 'notes.txt').write_text('no picture')
    picture = noise_file(tmp_path / 'a.png', 112, 56, 0)
    with served(app) as address:
        page.goto(address)
        page.click('#ask [type=submit]')
        page.wait_for_selector('.problem:not([hidden])')
        assert page.inner_text('.problem') == 'There is no question; type one.'
        page.set_input_files('.drop input', str(tmp_path / 'notes.txt'))
        page.wait_for_selector('.problem:has-text("used")')
        assert page.inner_text('.problem') == (
            'The picture cannot be used: the data is not an image of a known format.'
        )
        page.set_input_files('.drop input', picture)
        page.wait_for_selector('.given img')
        assert page.locator('.problem').is_hidden()
        tools.gate.clear()
        page.fill('textarea', 'What is it?')
        page.keyboard.press('Enter')
        # the crop is there, and its box in the picture, while the search is under way
        page.wait_for_selector('#asked .turn.crop .observation img')
        frame = page.locator('#asked .frame').first.bounding_box()
        box = page.locator('#asked .frame .box').first.bounding_box()
        assert box['x'] == pytest.approx(frame['x'] + BOX[0] * frame['width'], abs=1)
        assert box['y'] == pytest.approx(frame['y'] + BOX[1] * frame['height'], abs=1)
        assert page.locator('#asked .end').count() == 0
        tools.gate.set()
        page.wait_for_selector('#asked .end.answered')
        assert page.inner_text('#asked .end').startswith('Answer: this one')
        assert page.locator('#asked .thumb img').count() == 2
        assert page.locator('#asked .turns > li').count() == 3
        # the next question is stopped where it waits, and the one after it answered
        tools.gate.clear()
        page.keyboard.press('Enter')
        page.wait_for_selector('#asked article:first-child .turn.crop .observation')
        page.click('#stop')
        page.wait_for_selector('#asked article:first-child .end:has-text("Stopped.")')
        tools.gate.set()
        acts.clear()
        page.press('textarea', 'Enter')
        page.wait_for_selector('#asked article:first-child .end.answered')
        assert page.locator('#asked article').count() == 3
        page.set_viewport_size({'width': 400, 'height': 800})
        assert page.evaluate('document.documentElement.scrollWidth') <= 400


def test_only_the_page_itself_may_ask(asking):
    app, tools, _ = asking
    client = TestClient(app, base_url='http://127.0.0.1')
    # A form or a script of another site can send these types alone without being asked.
    for kind in ('text/plain', 'application/x-www-form-urlencoded'):
        sent = client.post('/pictures', content=b'\x89PNG', headers={'Content-Type': kind})
        assert sent.status_code == 415
        body = '{"question": "What?", "pictures": []}'
        sent = client.post('/questions', content=body, headers={'Content-Type': kind})
        assert sent.status_code == 422
    assert client.get('/', headers={'Host': 'evil.example'}).status_code == 400
    assert client.post('/questions', json={'question': '', 'pictures': []}).status_code == 422
    unknown = client.post('/questions', json={'question': 'What?', 'pictures': ['a' * 64]})
    assert unknown.status_code == 404 and 'give it again' in unknown.json()['detail']
    assert client.get('/questions/9').status_code == 404
    assert not tools.calls


def test_one_way_to_ask_excludes_the_other():
    check_ask(config_of(page=True, port=8080))
    with pytest.raises(UserError, match='ask.port is of the page'):
        check_ask(config_of(port=8080))
    config = config_of(page=True)
    config.question = 'What?'
    with pytest.raises(UserError, match='image and question are asked on the page'):
        check_ask(config)
