"""For who runs the server: its log, its end, its folders, and callers who forget a header."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml
from fastapi.testclient import TestClient
from stand_ins import as_json, chat, slow

from tools_server.app import create_app
from tools_server.build_index import main as build_index
from tools_server.config import ConfigError, parse_config
from tools_server.launch import ToolServer, ToolServerError
from tools_server.service import ToolService

ROOT = Path(__file__).parents[2]


@pytest.fixture
def app_client(tmp_path):
    config = parse_config({'images': {'directory': str(tmp_path / 'images')}})
    service = ToolService(config)
    service.load()
    with TestClient(create_app(service, config), base_url='http://localhost') as client:
        yield client
    service.close()


@pytest.mark.parametrize('kind', ['application/x-www-form-urlencoded', 'text/plain', None])
def test_a_body_without_its_type_is_told_which_one(app_client, kind):
    """As `curl -d '{...}'` sends it."""
    headers = {'Content-Type': kind} if kind else {}
    answer = app_client.post('/judge', content=b'{"question": "q"}', headers=headers)
    assert answer.status_code in (400, 415) and answer.json()['kind'] == 'caller'
    assert 'Content-Type: application/json' in answer.json()['message']
    wrong = app_client.post(
        '/judge', content=b'{"question": ', headers={'Content-Type': 'application/json'}
    )
    assert 'Content-Type' not in wrong.json()['message']


def retriever(url, **fields):
    return {
        'backend': 'retriever',
        'base_url': url,
        'timeout_s': 30,
        'limits': {'attempts': 1},
    } | fields


def lines_of(server):
    lines = [line for line in server.log_path.read_text().splitlines() if line.startswith('{')]
    return [json.loads(line) for line in lines]


def test_the_log_has_a_line_for_each_call_with_time_level_and_request(stand_in, tmp_path):
    stand_in.answers['/retrieve'] = as_json({'detail': 'index "wiki" is gone\nfor ever'}, 500)
    config = {'text_search': retriever(stand_in.url), 'log_level': 'info'}
    with ToolServer.start(config, tmp_path, ready_timeout_s=120) as server:
        body = {'question': 'q', 'references': ['Paris'], 'response': 'paris'}
        requests.post(
            server.url + '/judge', json=body, headers={'X-Request-Id': 'run-7.42'}, timeout=20
        )
        answer = requests.post(server.url + '/text_search', json={'query': 'q'}, timeout=20)
        odd = requests.get(
            server.url + '/live', headers={'X-Request-Id': '"} {"level": "x'}, timeout=20
        )
        first, second = lines_of(server)
    assert (first['request_id'], first['level'], first['tool'], first['outcome']) == (
        'run-7.42', 'info', 'judge', 'ok')  # fmt: skip
    assert second['level'] == 'warning' and second['request_id'] == answer.headers['X-Request-Id']
    assert second['reason'] == 'the retriever failed with status 500: index "wiki" is gone for ever'
    assert second['backend'] == 'retriever' and second['seconds'] > 0
    assert (
        time.time() - 60
        < time.mktime(time.strptime(second['time'][:19], '%Y-%m-%dT%H:%M:%S')) - time.timezone
    )
    assert len(odd.headers['X-Request-Id']) == 16  # a name that is no plain word is not taken


def test_calls_that_went_well_are_not_in_the_log_of_a_plain_server(tmp_path):
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        body = {'question': 'q', 'references': ['Paris'], 'response': 'paris'}
        assert requests.post(server.url + '/judge', json=body, timeout=20).json()['verdict']
        assert lines_of(server) == []


def test_sigterm_lets_calls_finish_and_answers_what_is_left(stand_in, tmp_path):
    judging = {'backend': 'openai', 'base_url': stand_in.url + '/v1', 'model': 'm', 'timeout_s': 30}
    reply = chat('Yes')

    def later(body):
        time.sleep(0.8)
        return reply(body)

    stand_in.answers |= {'/retrieve': slow(15), '/v1/chat/completions': later}
    config = {'text_search': retriever(stand_in.url), 'judge': judging}
    answers = {}
    with ToolServer.start(config, tmp_path, ready_timeout_s=120) as server:

        def call(tool, body):
            start = time.monotonic()
            answer = requests.post(f'{server.url}/{tool}', json=body, timeout=30)
            answers[tool] = answer.status_code, answer.json(), time.monotonic() - start

        case = {'question': 'q', 'references': ['Paris'], 'response': 'the French capital'}
        calls = [threading.Thread(target=call, args=('text_search', {'query': 'q'})),
                 threading.Thread(target=call, args=('judge', case))]  # fmt: skip
        for thread in calls:
            thread.start()
        deadline = time.monotonic() + 10
        while len(stand_in.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        # A head that never comes whole holds up nobody's end.
        half = socket.create_connection(('127.0.0.1', int(server.url.rpartition(':')[2])))
        half.sendall(b'POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{')
        server.process.send_signal(signal.SIGTERM)
        for thread in calls:
            thread.join()
        assert server.process.wait(10) == 0
        half.close()
    status, answer, _ = answers['judge']
    assert status == 200 and answer['verdict'] is True  # it had time to finish
    status, answer, seconds = answers['text_search']
    assert (status, answer['kind'], answer['backend']) == (503, 'unavailable', None)
    assert (
        'the server is stopping' in answer['message']
        and answer['retry_after_s'] > 0
        and seconds < 8
    )


def unusable(tmp_path):
    (tmp_path / 'file').write_text('a file where a folder should be')
    return tmp_path / 'file' / 'folder'


def test_folders_that_cannot_be_used_get_a_sentence(tmp_path, world, capsys):
    folder = unusable(tmp_path)
    for fields in ({'images': {'directory': str(folder)}}, {'answers': {'path': str(folder / 'a.sqlite')}},
                   {'answers': {'path': str(tmp_path)}}):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            ToolService(parse_config(fields))
        (section,) = fields
        assert section in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(
        ToolServerError, match='cannot be used: Not a directory; choose another workdir'
    ):
        ToolServer.start({}, folder)
    assert build_index(['text', str(world / 'passages.jsonl'), str(folder / 'index')]) == 1
    assert 'cannot be written: Not a directory' in capsys.readouterr().err
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump({}))
    command = [
        sys.executable,
        '-m',
        'tools_server',
        f'--config={tmp_path / "config.yaml"}',
        f'--images={folder}',
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        ended.returncode == 1
        and len(ended.stderr.splitlines()) == 1
        and str(folder) in ended.stderr
    )
