"""Reviews by a served model: what it is shown, and how its replies are read."""

import json
import random

import pytest
from answering_world import SEARCH, environment
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.openai_model import OpenAIModel, ServedModel
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.cold_start.review import Review, Reviewer, parse_review
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.pocket.expert.scripted import ScriptedExpert

GOOD = '{"format": true, "logic": true, "answer": true, "why": "All holds."}'
BAD = '{"format": true, "logic": false, "answer": true, "why": "It guesses."}'


@pytest.mark.parametrize(
    'reply, review',
    [
        (GOOD, Review((), 'All holds.')),
        (f'<think>{{}}</think>\n```json\n{BAD}\n```', Review(('logic',), 'It guesses.')),
        ('All is well.', None),
        ('{"format": true, "logic": true}', None),
        ('{"format": "yes", "logic": true, "answer": true}', None),
        ('{"format": true, ', None),
    ],
)
def test_replies_are_read(reply, review):
    assert parse_review(reply) == review


def reviewed(*replies, tries=2):
    world = environment()
    expert = ScriptedExpert(random.Random(0), DEFAULT, TOOLS, poor_crops=0, poor_queries=0)
    whole = synthesise(SEARCH, expert, world)
    with chat_stand_in() as service:
        service.replies = list(replies)
        model = OpenAIModel(ServedModel(service.url, 'm', '', 5.0, 1, 0.0, 0.0, 0.0), 1)
        found = Reviewer(model, world.client.image, DEFAULT, tries, 256)(whole)
        return found, service.requests, whole


def test_the_model_sees_question_steps_and_images():
    found, (request,), whole = reviewed(GOOD)
    text, *images = request.body['messages'][1]['content']
    case = json.loads(text['text'])
    assert found.against == () and case['references'] == list(SEARCH.answers)
    assert [step['action']['type'] for step in case['steps']] == [
        'ImageCrop', 'ImageSearch', 'TextSearch', 'Answer',
    ]  # fmt: skip
    assert len(images) == 2 and '<image 2>' in case['steps'][0]['result']
    assert all(step['reasoning'] for step in case['steps']) and '<' not in text['text']


def test_a_reply_that_cannot_be_read_is_asked_for_again():
    assert reviewed('Well.', BAD)[0].against == ('logic',)
    assert reviewed('Well.', 'Yes.')[0].kind == 'refused'
    assert reviewed(500)[0].kind == 'unavailable'
