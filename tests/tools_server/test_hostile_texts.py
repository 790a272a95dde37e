"""Texts, pages, links and replies made to hold a server up, to every entry of a running one that
takes text.

While they are worked on the server must answer others at once, keep every caller's deadline, and
stay small.
"""

import http.client
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import hostile_texts
import pytest
import requests
from control import Control
from stand_ins import StandIn, as_json, chat

from tools_server.launch import ToolServer

DEADLINE_S = 5.0
# On an idle machine; where it does other things as well, `Control.slack_s` is added.
LATE_S = 1.0  # by which an answer may come after its deadline
LIVE_S = 0.5
MOST_BYTES = 2**30  # of the server and its workers together


class Watch:
    """Asks a server again and again whether it lives; notes the longest wait and the most memory.

    Attributes:
        took_s: of every `call` in the block.
    """

    now: 'Watch | None' = None

    def __init__(self, server: ToolServer):
        self._server = server
        self.control = Control()
        self.took_s: list[float] = []
        self._ended = threading.Event()
        self.longest_s = 0.0
        self.most_bytes = 0
        self._threads = [threading.Thread(target=target) for target in (self._ask, self._weigh)]

    def __enter__(self) -> 'Watch':
        Watch.now = self
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        Watch.now = None
        self.control.close()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self._server.url).netloc, timeout=30)
        while not self._ended.wait(0.02):
            start = time.perf_counter()
            connection.request('GET', '/live')
            assert connection.getresponse().read() == b'{"live":true}'
            self.longest_s = max(self.longest_s, time.perf_counter() - start)
            self.control.ask()
        connection.close()

    def _weigh(self) -> None:
        self.most_bytes = family_bytes(self._server.process.pid)
        while not self._ended.wait(0.05):
            self.most_bytes = max(self.most_bytes, family_bytes(self._server.process.pid))


def family_bytes(process_id: int) -> int:
    """Memory of a process and its children, of which each counts what it does not share."""
    total = 0
    ids = [process_id]
    while ids:
        folder = Path('/proc') / str(ids.pop())
        try:
            fields = dict(
                line.split(':', 1)
                for line in (folder / 'smaps_rollup').read_text().splitlines()[1:]
            )
            total += int(fields['Pss'].split()[0]) * 1024
            for task in (folder / 'task').iterdir():
                ids += map(int, (task / 'children').read_text().split())
        except OSError:
            continue  # it ended meanwhile
    return total


@pytest.fixture(scope='module')
def service():
    made = StandIn()
    yield made
    made.close()


@pytest.fixture(scope='module')
def server(service, tmp_path_factory):
    model = {
        'base_url': service.url + '/v1',
        'model': 'm',
        'timeout_s': 3,
        'limits': {'attempts': 1},
    }
    search = {'backend': 'serper', 'base_url': service.url, 'allow_private_pages': True, 'summariser': 'extractive',
              'limits': {'attempts': 1, 'breaker_failures': 1000}}  # fmt: skip
    judge = {'backend': 'openai'} | model
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('SERPER_API_KEY', 'k')
        folder = tmp_path_factory.mktemp('server')
        config = {'text_search': search, 'judge': judge, 'mcp': True}
        with ToolServer.start(config, folder, ready_timeout_s=120) as running:
            yield running


def call(server, path: str, body: dict) -> requests.Response:
    """An answer or a failure with a kind; the watch knows how long it took."""
    start = time.monotonic()
    headers = {'X-Deadline-S': str(DEADLINE_S)}
    answer = requests.post(server.url + path, json=body, headers=headers, timeout=60)
    if Watch.now is not None:
        Watch.now.took_s.append(time.monotonic() - start)
    assert answer.status_code == 200 or answer.json()['kind'] in (
        'caller',
        'refused',
        'timeout',
        'unavailable',
    )
    return answer


def all_at_once(calls) -> list[requests.Response]:
    with ThreadPoolExecutor(min(len(calls), 16)) as threads:
        return [
            future.result() for future in [threads.submit(call, *arguments) for arguments in calls]
        ]


def found(service, results) -> None:
    """Results of the next searches."""
    body = as_json({'organic': results})({})[1]
    service.answers['/search'] = lambda _: (200, body)


def assert_unmoved(watch: Watch) -> None:
    slack_s = watch.control.slack_s
    assert watch.longest_s < LIVE_S + slack_s, f'/live took {watch.longest_s:.2f} s'
    assert max(watch.took_s, default=0) < DEADLINE_S + LATE_S + slack_s, max(watch.took_s)
    if sys.platform == 'linux':
        assert 0 < watch.most_bytes < MOST_BYTES, f'{watch.most_bytes / 2**20:.0f} MiB'


def test_pages(server, service):
    """Five of them behind each search, and all searches at once."""
    results = []
    for number, (name, make) in enumerate(hostile_texts.PAGES.items()):
        page = make()
        service.answers[f'/page/{number}'] = lambda _, page=page: (
            200,
            page,
            {'Content-Type': 'text/html'},
        )
        results.append(
            {'title': name, 'snippet': 'an excerpt', 'link': f'{service.url}/page/{number}'}
        )
    batches = [results[start : start + 5] for start in range(0, len(results), 5)]

    def answer(body: dict):
        return as_json({'organic': batches[int(body['q'].split()[-1])]})({})

    service.answers['/search'] = answer
    with Watch(server) as watch:
        answers = all_at_once([
            (server, '/text_search', {'query': f'search for the tower {n}'}) for n in range(len(batches))
        ])  # fmt: skip
    assert_unmoved(watch)
    for batch, answer in zip(batches, answers, strict=True):
        assert [passage['title'] for passage in answer.json()['results']] == [
            result['title'] for result in batch
        ]


def test_excerpts_titles_and_links(server, service):
    snippets = [{'title': 't', 'snippet': make()} for make in hostile_texts.SNIPPETS.values()]
    titles = [{'title': make(), 'snippet': 's'} for make in hostile_texts.SNIPPETS.values()]
    links = [{'title': 't', 'snippet': 's', 'link': link} for link in hostile_texts.LINKS.values()]
    with Watch(server) as watch:
        for number, results in enumerate((snippets, titles, links)):
            found(service, results)
            answer = call(
                server, '/text_search', {'query': f'a tower, {number}', 'top_k': 20}
            ).json()
            assert len(answer['results']) == len(results), answer
            assert all(len(passage['title']) <= 300 for passage in answer['results'])
            assert all(len(passage['text']) <= 1500 for passage in answer['results'])
    assert_unmoved(watch)


def test_queries_responses_and_references(server, service):
    found(service, [{'title': 't', 'snippet': 'a tower. ' * 30_000}])
    service.answers['/v1/chat/completions'] = chat('No')
    calls = []
    for make in (*hostile_texts.SNIPPETS.values(), *hostile_texts.RESPONSES.values()):
        text = str(make() or 'x').encode('utf-8', 'replace').decode()
        calls += [
            (server, '/text_search', {'query': text[:20_000]}),
            (
                server,
                '/judge',
                {'question': text[:20_000], 'references': ['Paris'], 'response': text},
            ),
            (
                server,
                '/judge',
                {'question': 'q', 'references': [text[:20_000]] * 20, 'response': text},
            ),
            (
                server,
                '/judge',
                {
                    'question': 'q',
                    'references': ['A'],
                    'choices': [text[:20_000]] * 26,
                    'response': text,
                },
            ),
        ]
    with Watch(server) as watch:
        all_at_once(calls)
    assert_unmoved(watch)


def test_replies_of_judges(server, service):
    with Watch(server) as watch:
        for name, make in hostile_texts.REPLIES.items():
            service.answers['/v1/chat/completions'] = chat(make())
            body = {'question': 'q', 'references': ['Paris'], 'response': f'a town, {name}'}
            assert call(server, '/judge', body).json()['kind'] == 'refused'
    assert_unmoved(watch)


JSONS = {
    'objects': '{{"query": "a", "more": [{}0]}}'.format('{"a":{}},' * 800_000),
    'lists': '{{"query": [{}0]}}'.format('[],' * 2_000_000),
    'nested': '{"query": ' + '[' * 1_000_000,
    'numbers': '{{"query": [{}0]}}'.format('0,' * 3_000_000),
    'digits': '{"top_k": ' + '9' * 4_000_000 + '}',
    'references': '{{"query": [0], "question": "q", "response": "r", "references": [{}0]}}'.format(
        '0,' * 3_000_000
    ),
    'names': '{' + ','.join(f'"a{number}":0' for number in range(400_000)) + '}',
}


@pytest.mark.parametrize('name', JSONS)
def test_requests_and_answers_that_are_costly_to_read(server, service, name):
    service.answers['/search'] = lambda _: (
        200,
        JSONS[name].replace('query', 'organic', 1).encode(),
    )
    with Watch(server) as watch:
        headers = {'X-Deadline-S': str(DEADLINE_S), 'Content-Type': 'application/json'}
        for path in ('/text_search', '/judge'):
            answer = requests.post(server.url + path, data=JSONS[name], headers=headers, timeout=30)
            assert answer.json()['kind'] == 'caller' and len(answer.content) < 2_000, answer.text[
                :300
            ]
        assert (
            call(server, '/text_search', {'query': f'a tower of {name}'}).json().get('kind')
            == 'unavailable'
        )
    assert_unmoved(watch)


def test_afterwards_the_server_is_as_before(server, service):
    """It answers, its workers are few, and no descriptor was left open by the calls before."""
    service.answers['/good'] = lambda _: (
        200,
        b'<p>The tower is 330 m high.</p>',
        {'Content-Type': 'text/html'},
    )
    found(service, [{'title': 't', 'snippet': 's', 'link': service.url + '/good'}])
    answer = call(server, '/text_search', {'query': 'How high is the tower, after all?'}).json()
    assert (answer['results'][0]['text'], answer['degraded']) == ('The tower is 330 m high.', [])
    if sys.platform == 'linux':
        assert len(os.listdir(f'/proc/{server.process.pid}/fd')) < 100
        assert len(os.listdir(f'/proc/{server.process.pid}/task')) < 100
