"""The served expert against a stand-in of an OpenAI-compatible service."""

import dataclasses
import json

import pytest
from answering_world import LOOSE, SEARCH, environment, validate
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.actions import Answer, ImageSearch, TextSearch
from sensesearch_jax.agent.openai_model import OpenAIAgent, OpenAIModel, ServedModel
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.cold_start.openai_expert import OpenAIExpert
from sensesearch_jax.cold_start.synthesis import synthesise


@pytest.fixture
def stand_in():
    """A served model that says what it is told, one reply per request."""
    with chat_stand_in() as service:
        yield service


def served(stand_in, tries=3):
    world = environment()
    model = OpenAIModel(ServedModel(stand_in.url, 'any-model', '', 5.0, 1, 0.0, 0.0, 0.0), 1)
    agent = OpenAIAgent(model, world.client.image, world.system_prompt, 0.7, 512)
    return OpenAIExpert(agent, DEFAULT, TOOLS, tries), world


def test_a_served_expert_writes_a_trajectory(stand_in):
    moves = [LOOSE, ImageSearch(2), TextSearch('Chad capital'), Answer("N'Djamena")]
    # Stop strings are left out of replies, and one reply is malformed.
    replies = [
        DEFAULT.render_action('A closer look will help.', m).removesuffix('</tool_call>')
        for m in moves
    ]
    stand_in.replies = ['no action at all', *replies]
    expert, world = served(stand_in)
    whole = synthesise(SEARCH, expert, world)
    assert [turn.action for turn in whole.turns] == moves and validate(whole) == []
    messages = stand_in.requests[-1].body['messages']
    assert messages[0]['content'] == DEFAULT.system_prompt(TOOLS)
    assert [m['role'] for m in messages] == ['system', 'user'] + ['assistant', 'user'] * 3
    assert 'Flag of Chad' not in json.dumps(messages[:4])


def test_a_served_expert_that_fails_makes_a_trajectory_that_does_not_count(stand_in):
    stand_in.replies = [500]
    expert, world = served(stand_in)
    whole = synthesise(SEARCH, expert, world)
    assert whole.state is SampleState.INFRA_FAILED and not whole.turns


def test_a_served_expert_that_never_acts_is_rejected(stand_in):
    stand_in.replies = ['words', 'more words']
    expert, world = served(stand_in, tries=2)
    whole = synthesise(SEARCH, expert, world)
    assert whole.state is SampleState.TRUNCATED and 'format' in validate(whole)


def test_a_served_expert_is_shown_every_image_of_the_question_in_order(stand_in):
    expert, world = served(stand_in)
    for images in ((), ('a.png', 'b.png')):
        stand_in.replies = [DEFAULT.render_action('I see them.', Answer("N'Djamena"))]
        synthesise(dataclasses.replace(SEARCH, images=images), expert, world)
    none, two = (request.body['messages'][1]['content'] for request in stand_in.requests)
    assert [part['type'] for part in none] == ['text'] and none[0]['text'] == SEARCH.text
    assert [part['type'] for part in two] == ['text', 'image_url'] * 2 + ['text']
    assert [part['text'] for part in two[::2]] == ['Image 1:', 'Image 2:', f'\n{SEARCH.text}']
