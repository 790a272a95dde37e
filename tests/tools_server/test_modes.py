"""The modes of a running server: what was recorded is replayed without keys, data or network."""

import base64

import pytest
from small_world import encoded, picture
from stand_ins import as_json, chat

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from tools_server.launch import ToolServer


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv('SERPER_API_KEY', 'serper-key')
    monkeypatch.setenv('MODEL_KEY', 'model-key')


@pytest.fixture
def config(stand_in):
    """Every tool asks the stand-in."""
    thumbnail = 'data:image/jpeg;base64,' + base64.b64encode(encoded(picture(5), '.jpg')).decode()
    stand_in.answers |= {
        '/search': lambda body: as_json({'organic': [{'title': body['q'], 'snippet': 'High.'}]})(
            body
        ),
        '/lens': as_json({'organic': [{'title': 'Picture F', 'thumbnailUrl': thumbnail}]}),
        '/v1/chat/completions': chat('Yes'),
    }
    quick = {'limits': {'attempts': 1}}
    return {
        'text_search': {'backend': 'serper', 'base_url': stand_in.url} | quick,
        'image_search': {'backend': 'serper', 'base_url': stand_in.url, 'public_url': 'https://tools.example'} | quick,
        'judge': {'backend': 'openai', 'base_url': stand_in.url + '/v1', 'model': 'm', 'api_key_env': 'MODEL_KEY'}
        | quick,
    }  # fmt: skip


def use(client):
    """Calls of a run; plain values, thumbnails as their files."""
    image = client.upload(encoded(picture(1)))
    crop = client.crop(image.sha256, (0.0, 0.0, 0.5, 0.5))
    matches = client.image_search(crop.sha256)
    return [
        image, crop, client.text_search('tower'), client.text_search('rate limited'), matches,
        [client.image(match.thumbnail.sha256) for match in matches],
        client.judge('q', ['Paris'], 'the French capital'), client.judge('q', ['Paris'], 'paris'),
    ]  # fmt: skip


def test_a_recorded_session_is_replayed_without_keys_and_network(
    config, stand_in, tmp_path, monkeypatch
):
    search = stand_in.answers['/search']
    stand_in.answers['/search'] = lambda body: (
        (429, b'{}') if body['q'] == 'rate limited' else search(body)
    )
    recording = tmp_path / 'recording.sqlite'
    with ToolServer.start(
        config, tmp_path / 'a', mode='record', answers=recording, ready_timeout_s=120
    ) as server:
        client = ToolClient(server.url)
        recorded = use(client)
        asked = len(stand_in.requests)
        # only what failed is asked again
        assert use(client) == recorded and len(stand_in.requests) == asked + 1
        server.process.kill()  # a recording needs no orderly end
    assert recorded[3] == ToolFailure('refused', 'Serper is rate-limited with status 429')
    assert recorded[6:] == [True, True] and recorded[4][0].title == 'Picture F'
    stand_in.close()
    monkeypatch.delenv('SERPER_API_KEY')
    monkeypatch.delenv('MODEL_KEY')
    with ToolServer.start(
        config, tmp_path / 'b', mode='replay', answers=recording, ready_timeout_s=120
    ) as server:
        client = ToolClient(server.url)
        assert use(client) == recorded
        missing = client.text_search('never asked before')
        assert missing.kind == 'unavailable' and 'not in the recording' in missing.message
        health = client.health()
        assert health['mode'] == 'replay' and health['backends']['text_search'] == 'recording'


def test_a_live_server_keeps_answers_over_restarts_and_offline_serves_them(
    config, stand_in, tmp_path
):
    cache = {'answers': {'path': str(tmp_path / 'cache.sqlite')}}
    with ToolServer.start(config | cache, tmp_path / 'a', ready_timeout_s=120) as server:
        first = ToolClient(server.url).text_search('tower')
    asked = len(stand_in.requests)
    with ToolServer.start(config | cache, tmp_path / 'a', ready_timeout_s=120) as server:
        assert (
            ToolClient(server.url).text_search('tower') == first and len(stand_in.requests) == asked
        )
    with ToolServer.start(
        config | cache, tmp_path / 'a', mode='offline', ready_timeout_s=120
    ) as server:
        client = ToolClient(server.url)
        assert client.text_search('tower') == first
        assert 'offline' in client.text_search('bridge').message and len(stand_in.requests) == asked
