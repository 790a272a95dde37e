"""The served expert against a stand-in of an OpenAI-compatible service."""

import http.server
import json
import threading

import pytest
from answering_world import LOOSE, SEARCH, World, environment, validate

from sensesearch_jax.agent.actions import Answer, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, SampleState
from sensesearch_jax.cold_start.openai_expert import OpenAIExpert
from sensesearch_jax.cold_start.synthesis import synthesise


@pytest.fixture
def stand_in():
    """An OpenAI-compatible server that says what it is told, one reply per request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            self.server.requests.append((self.path, dict(self.headers), body))
            status, content = self.server.replies.pop(0)
            data = json.dumps({'choices': [{'message': {'content': content}}]}).encode()
            self.send_response(status)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.requests, server.replies = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def served(stand_in, tmp_path, **options):
    (tmp_path / 'map.png').write_bytes(b'\x89PNG picture')
    world = environment()
    url = f'http://127.0.0.1:{stand_in.server_address[1]}/v1/'
    options = {'key_env': 'STAND_IN_KEY', 'root': tmp_path, **options}
    return OpenAIExpert(url, 'any-model', world.client, DEFAULT, TOOLS, **options), world


def test_a_served_expert_writes_a_trajectory(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv('STAND_IN_KEY', 'a-key')
    moves = [LOOSE, ImageSearch(2), TextSearch('Chad capital'), Answer("N'Djamena")]
    # Stop strings are left out of replies, and one reply is malformed.
    replies = [
        DEFAULT.render_action('A closer look will help.', m).removesuffix('</tool_call>')
        for m in moves
    ]
    stand_in.replies = [(200, 'no action at all')] + [(200, reply) for reply in replies]
    expert, world = served(stand_in, tmp_path)
    whole = synthesise(SEARCH, expert, world, image=ImageRef('whole', 3840, 2160))
    assert [turn.action for turn in whole.turns] == moves and validate(whole) == []
    path, headers, body = stand_in.requests[-1]
    assert path == '/v1/chat/completions' and headers['Authorization'] == 'Bearer a-key'
    assert body['model'] == 'any-model' and body['messages'][0]['content'] == DEFAULT.system_prompt(
        TOOLS
    )
    assert [m['role'] for m in body['messages']] == ['system', 'user'] + ['assistant', 'user'] * 3
    assert body['messages'][3]['content'][2]['image_url']['url'].startswith(
        'data:image/png;base64,'
    )
    assert 'Flag of Chad' not in json.dumps(body['messages'][:4])


@pytest.mark.parametrize('status, kind', [(500, 'unavailable'), (401, 'caller')])
def test_a_served_expert_that_fails_is_a_value(stand_in, tmp_path, status, kind):
    stand_in.replies = [(status, '')]
    expert, world = served(stand_in, tmp_path, attempts=1)
    failure = expert.next_turn(SEARCH, [])
    assert isinstance(failure, ToolFailure) and failure.kind == kind
    assert 'Authorization' not in stand_in.requests[0][1]


def test_a_served_expert_that_cannot_be_had(tmp_path):
    expert = OpenAIExpert(
        'http://127.0.0.1:9/v1', 'm', World(), DEFAULT, TOOLS, attempts=1, root=tmp_path
    )
    assert expert.next_turn(SEARCH, []).kind == 'caller'  # no such picture
    (tmp_path / 'map.png').write_bytes(b'x')
    assert expert.next_turn(SEARCH, []).kind == 'unavailable'
    whole = synthesise(SEARCH, expert, environment())
    assert whole.state is SampleState.INFRA_FAILED and not whole.turns


def test_a_served_expert_that_never_acts_is_rejected(stand_in, tmp_path):
    stand_in.replies = [(200, 'words'), (200, 'more words')]
    expert, world = served(stand_in, tmp_path, attempts=2)
    whole = synthesise(SEARCH, expert, world, image=ImageRef('whole', 3840, 2160))
    assert whole.state is SampleState.TRUNCATED and 'format' in validate(whole)
