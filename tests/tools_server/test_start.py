"""Starting and ending the server: bad configurations, ports in use, readiness, and parents that
die."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from fastapi.testclient import TestClient
from small_world import encoded, picture
from stand_ins import as_json, chat

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from tools_server.__main__ import main
from tools_server.app import create_app
from tools_server.config import ConfigError, load_config, parse_config
from tools_server.launch import ToolServer, ToolServerError
from tools_server.service import ToolService

ROOT = Path(__file__).parents[2]
POCKET = ROOT / 'configs' / 'tools_pocket.yaml'


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'tools_server', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def write(tmp_path):
    def write(fields: object) -> str:
        (tmp_path / 'config.yaml').write_text(
            fields if isinstance(fields, str) else yaml.safe_dump(fields)
        )
        return f'--config={tmp_path / "config.yaml"}'

    return write


def test_wrong_configurations_get_one_sentence(write, local_config, monkeypatch):
    """All in this process: what `python -m tools_server` prints comes from these messages."""
    from tools_server.config import ConfigError, load_config

    monkeypatch.delenv('SERPER_API_KEY', raising=False)
    monkeypatch.setenv('SHORT_TOKEN', 'short')
    cases = {
        'there is no such field': local_config | {'text_serch': {}},
        'there is no file': {'text_search': {'backend': 'local', 'passages': 'nowhere.jsonl'}},
        'SERPER_API_KEY': {'text_search': {'backend': 'serper'}},
        'text_search': {'text_search': {'backend': 'google'}},
        'is not a loopback address': {'host': '0.0.0.0'},
        'port': {'port': 70_000},
        'judge.base_url: Field required': {'judge': {'backend': 'openai'}},
        'is not an http(s) URL': {
            'judge': {'backend': 'openai', 'base_url': 'localhost', 'model': 'm'}
        },
        'needs at least 16 characters': {'host': '0.0.0.0', 'token_env': 'SHORT_TOKEN'},
        "mode 'record' needs the file": {'mode': 'record'},
        'there is no recording': {'mode': 'replay', 'answers': {'path': 'nowhere.sqlite'}},
        'OPENSEARCH_KEY': {
            'text_search': {
                'backend': 'opensearch',
                'base_url': 'http://localhost',
                'index': 'i',
                'api_key_env': 'OPENSEARCH_KEY',
            }
        },
        'must hold fields': '- a list',
        'is not YAML': 'a: [',
    }
    for words, fields in cases.items():
        path = write(fields).removeprefix('--config=')
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert words in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ConfigError, match='cannot read the configuration'):
        load_config('nowhere.yaml')


def test_python_configurations(tmp_path, local_config):
    from tools_server.config import ConfigError, load_config

    path = tmp_path / 'config.py'
    path.write_text(f'def get_config():\n    return {local_config!r}\n')
    config = load_config(path, {'images': {'max_pixels': 7}})
    assert config.text_search.max_chars == 120
    assert (config.images.max_pixels, config.images.max_bytes) == (7, 30_000_000)
    for text, words in {
        'x = 1': 'no get_config',
        'def get_config(): return 1 / 0': 'ZeroDivisionError',
        '(': 'SyntaxError',
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_config(path)


def test_command_ends_with_one_sentence(write, local_config, world):
    missing = run('--config=nowhere.yaml')
    assert missing.returncode == 1
    assert missing.stderr.splitlines() == [
        'tools_server: cannot read the configuration nowhere.yaml: No such file or directory'
    ]
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_use = run(write(local_config), f'--port={port}')
    assert in_use.returncode == 1 and in_use.stdout == ''
    assert len(in_use.stderr.splitlines()) == 1 and f'127.0.0.1:{port}' in in_use.stderr


def test_check_says_what_works(write, local_config, world):
    good = run(write(local_config), '--check')
    assert (
        good.returncode == 0
        and 'text_search: local works' in good.stdout
        and 'judge: rules works' in good.stdout
    )
    (world / 'damaged.jsonl').write_text('{"id": 1}\n')
    local_config = local_config | {
        'text_search': {'backend': 'local', 'passages': str(world / 'damaged.jsonl')}
    }
    bad = run(write(local_config), '--check')
    assert (
        bad.returncode == 1
        and 'damaged.jsonl, line 1' in bad.stderr
        and len(bad.stderr.splitlines()) == 1
    )


def test_check_names_the_back_end_that_does_not_work(write, local_config, stand_in):
    stand_in.answers['/retrieve'] = lambda body: (500, b'')
    retriever = {'backend': 'retriever', 'base_url': stand_in.url, 'limits': {'attempts': 1}}
    found = run(write(local_config | {'text_search': retriever}), '--check')
    assert (
        found.returncode == 1
        and 'text_search: retriever does NOT work (unavailable' in found.stdout
    )
    assert 'judge: rules works' in found.stdout


def test_check_names_a_summariser_that_does_not_work(
    local_config, stand_in, tmp_path, monkeypatch, capsys
):
    """Searches are answered without it, so nothing else would tell."""
    monkeypatch.setenv('SERPER_API_KEY', 'k')
    unpaid = as_json({'error': {'message': 'Incorrect API key provided: sk-x'}}, 401)
    stand_in.answers |= {'/search': as_json({'organic': []}), '/v1/chat/completions': unpaid}
    summariser = {'base_url': stand_in.url + '/v1', 'model': 'm'}
    serper = {'backend': 'serper', 'base_url': stand_in.url, 'summariser': summariser}
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(local_config | {'text_search': serper}))
    command = [f'--config={tmp_path / "config.yaml"}', '--check']
    assert main(command) == 1
    out = capsys.readouterr().out
    assert 'text_search: serper works' in out and 'found nothing' in out
    assert (
        'summariser: m does NOT work (refused' in out
        and '401: Incorrect API key provided: sk-x)' in out
    )
    stand_in.answers['/v1/chat/completions'] = chat('Paris.')
    stand_in.answers['/search'] = as_json({'organic': [{'title': 'Paris'}]})
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "found 'Paris'" in out and 'summariser: m works' in out and "s): 'Paris.'" in out
    assert 'judge: rules works' in out and 'says No' in out


def test_check_asks_the_back_end_and_not_what_was_kept(stand_in, tmp_path, capsys):
    """A search that was answered yesterday says nothing about the service today."""
    stand_in.answers['/retrieve'] = as_json({'result': [[{'contents': 'France\nParis'}]]})
    config = {'text_search': {'backend': 'retriever', 'base_url': stand_in.url, 'limits': {'attempts': 1}},
              'answers': {'path': str(tmp_path / 'a.sqlite')}, 'mode': 'record'}  # fmt: skip
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    command = [f'--config={tmp_path / "config.yaml"}', '--check']
    assert main(command) == 0 and "found 'France'" in capsys.readouterr().out
    stand_in.answers['/retrieve'] = as_json({'detail': 'the index is gone'}, 500)
    assert main(command) == 1
    assert (
        'does NOT work (unavailable: the retriever failed with status 500: the index is gone)'
        in (capsys.readouterr().out)
    )


def test_while_it_loads_a_server_says_so_and_when_to_come_again(local_config, tmp_path):
    config = parse_config(local_config | {'images': {'directory': str(tmp_path)}})
    service = ToolService(config)
    with TestClient(create_app(service, config), base_url='http://localhost') as client:
        assert client.get('/live').status_code == 200
        assert client.get('/ready').status_code == 503 and not client.get('/health').json()['ready']
        answer = client.post('/text_search', json={'query': 'capital of France'})
        assert (answer.status_code, answer.json()['kind']) == (503, 'unavailable')
        assert answer.json()['retry_after_s'] > 0 and answer.headers['Retry-After'] == '1'
        service.load()
        assert client.get('/ready').json() == {'ready': True}
        assert client.post('/text_search', json={'query': 'capital of France'}).status_code == 200
    service.close()


def test_launcher_reports_why_it_did_not_start(world, tmp_path):
    config = {'text_search': {'backend': 'local', 'passages': str(world / '0.png')}}
    with pytest.raises(ToolServerError, match='cannot read the passages'):
        ToolServer.start(config, tmp_path, ready_timeout_s=120)


def test_servers_that_share_a_folder_keep_their_own_addresses_and_pictures_in_common(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        servers = list(
            pool.map(lambda _: ToolServer.start({}, tmp_path, ready_timeout_s=120), range(4))
        )
    clients = [ToolClient(server.url) for server in servers]
    ref = clients[0].upload(encoded(picture(1)))
    assert all(client.crop(ref.sha256, (0, 0, 0.5, 0.5)).width == 180 for client in clients)
    assert len({server.log_path for server in servers}) == 4
    while servers:
        servers.pop().close()
        others = [client.health() for client in clients[: len(servers)]]
        assert not any(isinstance(answer, ToolFailure) for answer in others)
    assert isinstance(clients[0].health(), ToolFailure)  # behind its deadline


def test_the_reason_of_a_failed_start_is_its_own_among_others(world, tmp_path):
    """Beside a server that gets ready in the same folder."""
    wrong = {'text_search': {'backend': 'local', 'passages': str(world / '0.png')}}
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ToolServer.start, {}, tmp_path, ready_timeout_s=120)
        bad = pool.submit(ToolServer.start, wrong, tmp_path, ready_timeout_s=120)
        with good.result() as server:
            assert server.alive()
            with pytest.raises(ToolServerError, match='cannot read the passages'):
                bad.result()


def test_tool_without_back_end_is_unavailable_and_sigterm_is_clean(tmp_path):
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        client = ToolClient(server.url)
        assert client.text_search('x').kind == 'unavailable'
        ref = client.upload(encoded(picture(1)))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
    # A later server in the same workdir still has the pictures.
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        assert ToolClient(server.url).crop(ref.sha256, (0, 0, 0.5, 0.5)).width == 180


def test_server_ends_when_its_parent_is_killed(tmp_path):
    program = (
        'import sys, time; from tools_server.launch import ToolServer; '
        f'print(ToolServer.start({{}}, {str(tmp_path)!r}).url, flush=True); time.sleep(60)'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    url = parent.stdout.readline().strip()
    assert requests.get(url + '/health', timeout=5).json()['ready']
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            requests.get(url + '/health', timeout=1)
        except requests.ConnectionError:
            return
        time.sleep(0.1)
    pytest.fail('the server outlived its parent')


def test_the_online_configuration_takes_its_keys_from_the_environment(monkeypatch):
    keys = {'SERPER_API_KEY': 'a', 'OPENAI_API_KEY': 'b', 'TOOLS_SERVER_TOKEN': 'c' * 16}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    config = load_config(ROOT / 'configs' / 'tools_online.yaml', {})
    assert (config.text_search.backend, config.image_search.backend, config.judge.backend) == (
        'serper',
        'serper',
        'openai',
    )
    assert config.text_search.summariser.model == 'Qwen3-32B' and config.token() == 'c' * 16
    for name in keys:
        monkeypatch.delenv(name)
        with pytest.raises(ConfigError, match=name):
            load_config(ROOT / 'configs' / 'tools_online.yaml', {})
        monkeypatch.setenv(name, keys[name])


@pytest.mark.skipif(not POCKET.exists(), reason='the pocket world is not there')
def test_pocket_configuration(tmp_path):
    with ToolServer.start(POCKET, tmp_path) as server:
        client = ToolClient(server.url)
        found = client.text_search('capital of Algeria')
        assert any('Algiers' in passage.text for passage in found)
        gallery = ROOT / 'sensesearch_jax' / 'pocket' / 'world' / 'files' / 'gallery'
        ref = client.upload(gallery / 'flag-ad.png')
        assert client.image_search(ref.sha256)[0].title == 'Flag of Andorra'
