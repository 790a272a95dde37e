"""The judge's request carries question, images, references and response; images where it takes them."""

import json

import pytest
from test_online import chat, encoded, model, picture

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.launch import ToolServer


@pytest.mark.parametrize('images', [True, False])
def test_the_judge_is_shown_the_images_that_it_takes(stand_in, tmp_path, monkeypatch, images):
    monkeypatch.setenv('MODEL_KEY', 'model-key')
    stand_in.answers['/v1/chat/completions'] = chat('Yes')
    config = {'judge': {'backend': 'openai', 'images': images} | model(stand_in)}
    with ToolServer.start(config, tmp_path, ready_timeout_s=120) as server:
        client = ToolClient(server.url)
        shown = [client.upload(encoded(picture(number))).sha256 for number in (1, 2)]
        shown = shown if images else [*shown, 'f' * 64]  # what is not shown need not be there
        assert (
            client.judge('Which city?', ['Paris', 'Lutetia'], 'the French capital', shown) is True
        )
    content = stand_in.requests[0][2]['messages'][1]['content']
    text = content if isinstance(content, str) else content[-1]['text']
    assert json.loads(text) == {
        'question': 'Which city?',
        'references': ['Paris', 'Lutetia'],
        'response': 'the French capital',
    }
    parts = [] if isinstance(content, str) else content[:-1]
    assert [part['type'] for part in parts] == ['image_url'] * 2 * images
