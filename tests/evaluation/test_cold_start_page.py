"""The page of a cold start: its counts, its cost, and text from elsewhere as text."""

import random
import re

from answering_world import LOOK, SEARCH, environment

from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.evaluation.cold_start_page import write_cold_start_page
from sensesearch_jax.pocket.expert.scripted import ScriptedExpert


def page(path, **changes):
    kept, rejected = (
        synthesise(question, ScriptedExpert(random.Random(0), DEFAULT, TOOLS), environment())
        for question in (SEARCH, LOOK)
    )
    rejected.failure = 'wrong_answer: <b>no</b>'
    spent = {
        'calls': 1_200,
        'replies': 900,
        'usd': 3.5,
        'assumed_usd': 0.25,
        'failed': {'timeout': 300},
    }
    values = {
        'questions': [SEARCH, LOOK], 'right': {SEARCH.id: 0, LOOK.id: 7}, 'samples': 8, 'most_right': 1,
        'kept': [kept], 'rejected': [rejected], 'reasons': {'wrong_answer': 1}, 'spending': {'expert': spent},
        'budget': {'usd': 10.0, 'calls': 0}, 'ended': '', 'image_loader': lambda sha: None, 'protocol': DEFAULT,
    }  # fmt: skip
    write_cold_start_page(path, **values | changes)
    return path.read_text()


def words(text):
    """The text of the page's body."""
    body = text[text.index('<body>') : text.index('<script')]
    return ' '.join(re.sub(r'<[^>]*>', ' ', body).split())


def test_the_page_has_the_counts_and_the_cost(tmp_path):
    text = page(tmp_path / 'page.html')
    seen = words(text)
    assert 'Questions 2 2 mined Hard 1 50 % of the mined Kept 1 50 % of the made' in seen
    assert 'US dollars 3.50 of 10 allowed; 1,200 requests' in seen
    assert 'questions 2 mined 2 hard 1 demonstrated 2 kept 1' in seen and 'wrong answer 1' in seen
    assert '0 of 8 1' in seen and '7 of 8 1' in seen and 'at most 1 of 8' in seen
    assert 'Synthesis 1,200 900 300 timeout 3.5000 0.2500' in seen
    assert '<b>no</b>' not in text  # it stands in the viewer's data, as text


def test_a_trajectory_without_an_answer_is_not_right(tmp_path):
    cut = synthesise(SEARCH, ScriptedExpert(random.Random(0), DEFAULT, TOOLS), environment(), 1)
    cut.failure = 'format, too_long'
    text = page(tmp_path / 'page.html', kept=[], rejected=[cut])
    assert '"answer":null' in text and '"right":false' in text and '"right":true' not in text


def test_a_run_without_served_models_has_no_cost(tmp_path):
    seen = words(page(tmp_path / 'page.html', spending={}, ended='The budget is <spent>.'))
    assert 'Cost' not in seen.replace('Cold start', '') and 'US dollars' not in seen
    assert 'Not over: The budget is &lt;spent&gt;.' in seen
