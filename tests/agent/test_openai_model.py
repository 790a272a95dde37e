"""A served model: retries, deadlines, usage and cost, parameters that it does not take, messages."""

import json
import time

import pytest
from chat_stand_in import chat_stand_in, completion

from sensesearch_jax.agent.actions import Answer, ImageCrop
from sensesearch_jax.agent.openai_model import (
    OpenAIAgent,
    OpenAIModel,
    Reply,
    Request,
    ServedModel,
    Unanswered,
    to_messages,
)
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Turn

ASKED = Request([{'role': 'user', 'content': 'What is it?'}], 0.7, 64, ('</tool_call>',))


@pytest.fixture
def service():
    with chat_stand_in() as started:
        yield started


class Noted:
    """A meter that notes the outcomes."""

    def __init__(self):
        self.admitted, self.outcomes = 0, []

    def admit(self, server, request):
        self.admitted += 1

    def settle(self, server, request, outcome):
        self.outcomes.append(outcome)


def model(service, attempts=3, key_env='', timeout_s=5.0):
    url = service if isinstance(service, str) else service.url
    return OpenAIModel(ServedModel(url, 'm', key_env, timeout_s, attempts, 0, 0.3, 2.5), 1)


def test_a_reply_has_text_and_usage(service, monkeypatch):
    monkeypatch.setenv('STAND_IN_KEY', 'a-key')
    service.replies = [completion('a cat', prompt=1000, written=10)]
    reply = model(service, key_env='STAND_IN_KEY').ask(ASKED)
    assert reply == Reply(('a cat',), ('stop',), 1000, 10)
    (request,) = service.requests
    assert request.path == '/v1/chat/completions'
    assert request.headers['Authorization'] == 'Bearer a-key'
    assert request.body == {
        'model': 'm', 'messages': ASKED.messages, 'temperature': 0.7, 'max_tokens': 64,
        'stop': ['</tool_call>'],
    }  # fmt: skip
    assert ServedModel('', '', '', 1, 1, 0, 0.3, 2.5).cost(1_000_000, 100_000) == pytest.approx(
        0.55
    )


def test_no_key_is_sent_where_there_is_none(service, monkeypatch):
    monkeypatch.delenv('STAND_IN_KEY', raising=False)
    service.replies = ['it']
    model(service, key_env='STAND_IN_KEY').ask(ASKED)
    assert 'Authorization' not in service.requests[0].headers


def test_thought_tokens_that_one_count_leaves_out_are_paid(service):
    reply = completion('it', prompt=100, written=5)
    reply['usage']['total_tokens'] = 400
    service.replies = [reply]
    assert model(service).ask(ASKED).completion_tokens == 300


@pytest.mark.parametrize(
    'fault, billable',
    [
        (503, False),
        (429, False),
        ('cut', True),
        ((200, b'<html>', {}), True),
        ((200, b'{"choices": []}', {}), True),
        ('late', True),
    ],
)
def test_faults_are_tried_again_and_said_to_the_meter(service, fault, billable):
    meter = Noted()
    service.replies = [fault, 'it']
    assert model(service, timeout_s=0.3).ask(ASKED, meter).text == 'it'
    failed, reply = meter.outcomes
    assert isinstance(failed, Unanswered) and failed.billable is billable
    assert meter.admitted == len(service.requests) == 2 and isinstance(reply, Reply)


def test_the_last_failure_is_a_value(service):
    service.replies = [500, 500]
    failure = model(service, attempts=2).ask(ASKED)
    assert failure.kind == 'unavailable' and 'status 500: no' in failure.message


def test_a_refusal_is_not_tried_again(service):
    service.replies = [401]
    assert model(service).ask(ASKED).kind == 'caller' and len(service.requests) == 1


def test_nobody_there_costs_nothing():
    meter = Noted()
    failure = model('http://127.0.0.1:9/v1', attempts=2).ask(ASKED, meter)
    assert failure.kind == 'unavailable' and [o.billable for o in meter.outcomes] == [False] * 2


def test_the_service_says_when_to_come_again(service):
    service.replies = [(429, {}, {'Retry-After': '0.3'}), 'it']
    began = time.monotonic()
    assert model(service).ask(ASKED).text == 'it' and time.monotonic() - began >= 0.3


def test_parameters_that_a_model_does_not_take_are_left_out(service):
    def refused(name):
        return 400, {'error': {'code': 'unsupported_parameter', 'param': name, 'message': ''}}, {}

    service.replies = [refused('max_tokens'), refused('temperature'), 'it', 'it']
    asked = model(service, attempts=1)
    assert asked.ask(ASKED).text == asked.ask(ASKED).text == 'it'
    last = service.requests[-1].body
    assert not {'max_tokens', 'temperature'} & last.keys() and last['max_completion_tokens'] > 64


def test_several_choices_where_the_service_gives_them(service):
    service.replies = [
        completion('a', 'b'),
        (400, {'error': {'message': 'one at a time'}}, {}),
        'c',
    ]
    asked, two = model(service), Request(ASKED.messages, 1.0, 8, choices=2)
    assert asked.ask(two).texts == ('a', 'b') and service.requests[0].body['n'] == 2
    assert asked.ask(two).texts == ('c',) and 'n' not in service.requests[-1].body


def test_a_meter_forbids_an_attempt(service):
    class Spent(Noted):
        def admit(self, server, request):
            if self.outcomes:
                raise RuntimeError('spent')

    service.replies = [500]
    with pytest.raises(RuntimeError, match='spent'):
        model(service).ask(ASKED, Spent())
    assert len(service.requests) == 1


SEEN = Observation(
    ('Image 2:', ImageRef('crop', 9, 9)), True, 'image_crop', (ImageRef('crop', 9, 9),)
)
TURN = Turn([], [], 'a look', ImageCrop((0, 0, 1, 1)), SEEN, [])


def test_a_trajectory_is_a_conversation_with_its_images():
    files = {'whole': b'\x89PNG whole', 'crop': b'\xff\xd8 crop'}
    last = Turn([], [], 'done', Answer('it'), None, [])
    user = [ImageRef('whole', 9, 9), 'What is it?']
    messages = to_messages('be brief', user, [TURN, last], files.__getitem__)
    assert [m['role'] for m in messages] == ['system', 'user', 'assistant', 'user', 'assistant']
    urls = [
        part['image_url']['url'][:16]
        for m in messages
        if isinstance(m['content'], list)
        for part in m['content']
        if part['type'] == 'image_url'
    ]
    assert urls == ['data:image/png;b', 'data:image/jpeg;']
    assert ''.join(p.get('text', '|') for p in messages[3]['content']) == (
        '<tool_response>\nImage 2:|\n</tool_response>'
    )
    lost = ToolFailure('unavailable', 'gone')
    assert to_messages('', user, [], lambda sha256: lost) is lost


@pytest.mark.parametrize(
    'written, turn',
    [
        ('so <tool_call>\n{}\n', 'so <tool_call>\n{}\n</tool_call>'),
        ('so <tool_call>\n{}\n</tool_call> and then', 'so <tool_call>\n{}\n</tool_call>'),
        ('so <answer>it</answer>', 'so <answer>it</answer>'),
    ],
)
def test_a_turn_ends_with_its_call(service, written, turn):
    service.replies = [written]
    agent = OpenAIAgent(model(service), lambda sha256: b'', 'system', 0.0, 64)
    assert agent.write(['What?'], [], 0).text == turn
    assert json.dumps(service.requests[0].body['messages']).count('What?') == 1
