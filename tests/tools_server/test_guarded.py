"""A server with a token, a small waiting room and a slow judge: who may call, what is counted, what
is refused."""

import asyncio
import base64
import json
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mcp
import pytest
import requests
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from picture_bombs import saved
from PIL import Image
from small_world import encoded, picture
from stand_ins import StandIn, chat

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.launch import ToolServer
from tools_server.signatures import picture_path

ROOT = Path(__file__).parents[2]
TOKEN = 'a-token-of-some-length'
BEARER = {'Authorization': f'Bearer {TOKEN}'}


@pytest.fixture(scope='module')
def model():
    service = StandIn()
    yield service
    service.close()


@pytest.fixture(scope='module')
def server(model, local_config, tmp_path_factory):
    config = local_config | {
        'token_env': 'SOME_TOKEN', 'threads': 2, 'queue': 3, 'deadline_s': 3, 'mcp': True,
        'judge': {'backend': 'openai', 'base_url': model.url + '/v1', 'model': 'm', 'timeout_s': 20,
                  'limits': {'attempts': 1, 'breaker_failures': 1000}},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('SOME_TOKEN', TOKEN)
        with ToolServer.start(
            config, tmp_path_factory.mktemp('guarded'), ready_timeout_s=120
        ) as running:
            yield running


@pytest.fixture
def client(server):
    return ToolClient(server.url, token=TOKEN)


PATHS = ['/health', '/statistics', '/metrics', '/images/' + 'a' * 64, '/nowhere', '/mcp']


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize(
    'headers', [{}, {'Authorization': 'Bearer wrong'}, {'Authorization': TOKEN}]
)
def test_nothing_is_said_without_the_token(server, path, headers):
    answer = requests.get(server.url + path, headers=headers, timeout=5)
    assert answer.status_code == 401 and answer.json()['kind'] == 'refused'


def test_the_page_of_the_api_is_open_and_says_how_to_send_the_token(server):
    """A browser cannot send a token with an address that is typed; what the page tries out needs
    it."""
    page = requests.get(server.url + '/docs', timeout=5)
    assert page.status_code == 200 and '//cdn.' not in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) >= 2
    for file in files:  # all from this server: a pod has no internet
        assert (
            file.startswith('/') and requests.get(server.url + file, timeout=5).status_code == 200
        ), file
    schema = requests.get(server.url + '/openapi.json', timeout=5).json()
    assert schema['components']['securitySchemes'] == {
        'HTTPBearer': {'type': 'http', 'scheme': 'bearer'}
    }
    assert schema['paths']['/text_search']['post']['security'] == [{'HTTPBearer': []}]
    for path in (
        '/docs/../health',
        '/docs-files/../health',
        '/docs-files/..%2fhealth',
        '/docs-filesx',
    ):
        request = requests.Request('GET', server.url).prepare()
        request.url = server.url + path  # as it is: a library would tidy it up
        assert requests.Session().send(request, timeout=5).status_code in (401, 404), path


def test_only_whether_the_process_lives_is_open_to_all(server):
    assert requests.get(server.url + '/live', timeout=5).json() == {'live': True}
    assert requests.get(server.url + '/ready', timeout=5).json() == {'ready': True}
    assert ToolClient(server.url, token='wrong').text_search('q').kind == 'refused'


def test_a_signed_address_opens_one_picture(server, client):
    one, other = (client.upload(encoded(picture(number))).sha256 for number in (1, 2))
    path = picture_path(one, TOKEN)
    assert requests.get(server.url + path, timeout=5).content == client.image(one)
    assert requests.get(server.url + path.replace(one, other), timeout=5).status_code == 401


def test_a_signed_address_shows_neither_place_nor_text(server, client):
    """Whoever comes with a signature is a service elsewhere, however it writes the rest of the
    address."""
    data = saved(Image.fromarray(picture(1)), 'JPEG', comment=b'secret')
    name = client.upload(data).sha256
    assert client.image(name) == data
    signed = picture_path(name, TOKEN)
    for path in (
        signed,
        signed.replace('bare=true', 'bare=false'),
        signed.replace('bare=true&', ''),
    ):
        shown = requests.get(server.url + path, timeout=5)
        assert (
            shown.status_code == 200 and b'secret' not in shown.content and b'JFIF' in shown.content
        )
    asked = requests.get(f'{server.url}/images/{name}?bare=true', headers=BEARER, timeout=5).content
    assert b'secret' not in asked


def test_client_takes_the_token_from_the_environment(server, monkeypatch):
    monkeypatch.setenv('TOOLS_SERVER_TOKEN', TOKEN)
    assert ToolClient(server.url).health()['mode'] == 'live'


def test_deadline_holds_whatever_the_back_end_does(server, client, model):
    model.answers['/v1/chat/completions'] = lambda body: (time.sleep(6), chat('Yes')(body))[1]
    body = {'question': 'q', 'references': ['Paris'], 'response': 'slow one'}
    for header, longest in (({'X-Deadline-S': '0.4'}, 0.4), ({}, 3.0)):
        start = time.monotonic()
        answer = requests.post(
            server.url + '/judge', json=body, headers=BEARER | header, timeout=10
        )
        assert answer.status_code == 504 and time.monotonic() - start < longest + 1
        failure = answer.json()
        assert (failure['kind'], failure['backend'], failure['cache_hit']) == (
            'timeout',
            'rules, then m',
            False,
        )
        assert longest - 0.1 < failure['latency_s'] < longest + 1
        body['response'] += '!'
    for wrong in ('soon', 'nan'):
        answer = requests.post(
            server.url + '/judge', json=body, headers=BEARER | {'X-Deadline-S': wrong}, timeout=5
        )
        assert answer.status_code == 400
    model.answers['/v1/chat/completions'] = chat('Yes')
    deadline = time.monotonic() + 15
    # once the hung calls have ended
    while client.judge('q', ['Paris'], 'the French capital') is not True:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_full_waiting_room_sends_away_and_the_client_comes_again(server, model):
    model.answers['/v1/chat/completions'] = lambda body: (time.sleep(0.3), chat('Yes')(body))[1]
    before = requests.get(server.url + '/statistics', headers=BEARER, timeout=5).json()['calls'][
        'judge'
    ]

    def ask(number):
        body = {'question': 'q', 'references': ['Paris'], 'response': f'crowd {number}'}
        return requests.post(server.url + '/judge', json=body, headers=BEARER, timeout=10)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    sent_away = [answer for answer in answers if answer.status_code == 429]
    assert len(sent_away) >= 8 and all(a.status_code == 200 for a in answers if a not in sent_away)
    for answer in sent_away:
        assert answer.json()['kind'] == 'unavailable' and int(answer.headers['Retry-After']) >= 1
        assert answer.json()['retry_after_s'] > 0
    patient = ToolClient(server.url, deadline_s=20, token=TOKEN)
    with ThreadPoolExecutor(10) as pool:
        verdicts = list(
            pool.map(lambda n: patient.judge('q', ['Paris'], f'patient {n}'), range(10))
        )
    assert verdicts == [True] * 10
    after = requests.get(server.url + '/statistics', headers=BEARER, timeout=5).json()['calls'][
        'judge'
    ]
    assert after['ok'] - before.get('ok', 0) == 10 + 16 - len(sent_away)
    assert after['unavailable'] - before.get('unavailable', 0) >= len(sent_away)


def test_metrics_count_calls_by_outcome(server, client):
    def count(outcome, cache_hit='false'):
        text = requests.get(server.url + '/metrics', headers=BEARER, timeout=5).text
        labels = f'backend="local",cache_hit="{cache_hit}",outcome="{outcome}",tool="text_search"'
        found = re.search(re.escape(f'tools_calls_total{{{labels}}}') + r' (\S+)', text)
        return float(found.group(1)) if found else 0.0

    before = count('ok'), count('ok', 'true')
    for _ in range(3):
        assert isinstance(client.text_search('a query for the metrics'), list)
    assert (count('ok') - before[0], count('ok', 'true') - before[1]) == (1, 2)
    text = requests.get(server.url + '/metrics', headers=BEARER, timeout=5).text
    for name in (
        'process_resident_memory_bytes',
        'tools_call_seconds_bucket',
        'tools_now',
        'tools_services',
    ):
        assert name in text


@pytest.mark.parametrize('declared', [True, False])
def test_bodies_beyond_the_limit_are_not_read(server, declared):
    data = b'{"query": "' + b'x' * 9_000_000 + b'"}'
    body = data if declared else iter([data])
    answer = requests.post(server.url + '/text_search', data=body, headers=BEARER, timeout=10)
    assert answer.status_code == 413 and answer.json()['kind'] == 'caller'


def test_an_upload_that_does_not_arrive_ends_at_the_deadline(server):
    host, port = server.url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f'POST /images HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nX-Deadline-S: 0.3\r\n'
            'Content-Type: image/jpeg\r\n'
        )
        connection.sendall(head.encode() + b'Content-Length: 1000\r\n\r\nhalf')
        start = time.monotonic()
        assert b'504' in connection.recv(4096) and time.monotonic() - start < 1.5


def test_another_host_name_is_turned_away_where_no_token_is_asked_for(local_config, tmp_path):
    """Requests of a web page whose own name was made to resolve to this machine."""
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        for host, status in {
            'evil.example': 403,
            'localhost.evil.example:80': 403,
            'localhost:1': 200,
            '[::1]:5': 200,
        }.items():
            answer = requests.get(server.url + '/health', headers={'Host': host}, timeout=5)
            assert answer.status_code == status, host


def test_mcp_over_http(server):
    async def scenario():
        http = create_mcp_http_client(headers=BEARER)
        async with mcp.Client(
            streamable_http_client(server.url + '/mcp', http_client=http)
        ) as client:
            await use_all_tools(client)

    asyncio.run(scenario())


def test_mcp_over_standard_streams(local_config, tmp_path):
    (tmp_path / 'config.yaml').write_text(json.dumps(local_config))
    command = ['-m', 'tools_server', f'--config={tmp_path / "config.yaml"}', '--stdio']
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=command, env={'PYTHONPATH': str(ROOT)}
    )

    async def scenario():
        async with mcp.Client(parameters) as client:
            await use_all_tools(client)

    asyncio.run(scenario())


async def use_all_tools(client):
    tools = {tool.name for tool in (await client.list_tools()).tools}
    assert tools == {'upload_image', 'fetch_image', 'crop', 'text_search', 'image_search', 'judge'}
    data = base64.b64encode(encoded(picture(3), '.jpg')).decode()
    image = (await client.call_tool('upload_image', {'data': data})).structured_content
    assert (image['width'], image['backend']) == (360, 'local')
    crop = await client.call_tool('crop', {'image': image['sha256'], 'bbox': [0, 0, 0.5, 0.5]})
    assert crop.structured_content['width'] == 180
    shown = (await client.call_tool('fetch_image', {'sha256': image['sha256']})).content[0]
    assert shown.type == 'image' and shown.data == data
    found = await client.call_tool('image_search', {'image': image['sha256'], 'top_k': 1})
    assert found.structured_content['results'][0]['title'] == 'Picture D'
    text = await client.call_tool('text_search', {'query': 'capital of France'})
    assert 'Paris' in text.structured_content['results'][0]['text']
    verdict = await client.call_tool(
        'judge', {'question': 'q', 'references': ['Paris'], 'response': 'paris'}
    )
    assert verdict.structured_content['verdict'] is True
    case = {'question': 'q', 'references': ['B'], 'response': '(b)', 'images': [image['sha256']]}
    verdict = await client.call_tool('judge', case | {'choices': ['red', 'blue']})
    assert verdict.structured_content['verdict'] is True
    for name, arguments in {
        'crop': {'image': 'f' * 64, 'bbox': [0, 0, 1, 1]},
        'upload_image': {'data': '!'},
        'judge': case | {'choices': ['red']},
        'text_search': {'query': 'x', 'topk': 3},
        'nothing': {},
    }.items():
        failure = await client.call_tool(name, arguments)
        assert failure.is_error and failure.content[0].text.startswith('caller: ')
    wrong = await client.call_tool('crop', {'image': image['sha256'], 'bbox': [0, 0, 2, 1]})
    assert wrong.content[0].text.startswith('caller: bbox: must lie within [0, 1]')
    assert '\n' not in wrong.content[0].text
    unknown = await client.call_tool('text_search', {'query': 'x', 'topk': 3})
    assert (
        unknown.content[0].text
        == "caller: text_search takes no argument 'topk'; it takes query, top_k"
    )
    tools = (await client.list_tools()).tools
    assert all(tool.input_schema['additionalProperties'] is False for tool in tools)
