"""Services that close half of a connection, stop halfway, or say of their answer what is not true."""

import gzip
import json
import socket
import time

import pytest
from fastapi.testclient import TestClient
from stand_ins import as_json, raw_peer

from tools_server.app import create_app
from tools_server.backends.judge_openai import ModelJudge
from tools_server.backends.text_opensearch import OpenSearchTextSearch
from tools_server.backends.text_retriever import RetrieverTextSearch
from tools_server.backends.text_serper import SerperTextSearch
from tools_server.config import parse_config
from tools_server.failures import ToolError
from tools_server.service import ToolService

TIMEOUT_S = 0.4
# Two answers that every service here would take for its own: nothing found, Yes; something found,
# No.
GOOD, OTHER = (
    json.dumps({'result': [[{'contents': 'T\nx'}] * count], 'hits': {'hits': [{'_source': {}, '_score': 1}] * count},
                'organic': [{}] * count, 'choices': [{'message': {'content': verdict}}]}).encode()
    for count, verdict in ((0, 'Yes'), (1, 'No'))
)  # fmt: skip


def sent(*pieces, pause_s=0.0, hold_s=0.0):
    """Sends these pieces, waits, and closes the connection."""

    def answer(connection):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
        time.sleep(hold_s)

    return answer


def half_closed(connection):
    """Says that nothing will come, and goes on listening."""
    connection.shutdown(socket.SHUT_WR)
    time.sleep(2)


def told(body, *headers, length=None, status='200 OK'):
    lines = [
        f'HTTP/1.1 {status}',
        f'Content-Length: {len(body) if length is None else length}',
        *headers,
    ]
    return '\r\n'.join(lines).encode() + b'\r\n\r\n' + body


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
LIES = {
    'closed at once': (sent(), 'unavailable'),
    'half-closed': (half_closed, 'unavailable'),
    'half a header': (sent(b'HTTP/1.1 200 OK\r\nContent-Le'), 'unavailable'),
    'half an answer': (sent(told(GOOD[:30], length=len(GOOD))), 'unavailable'),
    'half an answer, then silence': (sent(told(GOOD[:30], length=len(GOOD)), hold_s=2), 'timeout'),
    'silence': (sent(hold_s=2), 'timeout'),
    'a byte now and then': (sent(told(b'', length=99), *[b' '] * 40, pause_s=0.05), 'timeout'),
    'to be continued for ever': (sent(*[b'HTTP/1.1 100 Continue\r\n\r\n'] * 40, pause_s=0.05), 'timeout'),
    'another protocol': (sent(b'SSH-2.0-OpenSSH_9.6\r\n'), 'unavailable'),
    'headers without end': (sent(b'HTTP/1.1 200 OK\r\n', b'X-Y: z\r\n' * 1000), 'unavailable'),
    'longer than it says': (sent(told(GOOD, length=20)), 'unavailable'),
    'of two lengths': (sent(told(GOOD, 'Content-Length: 20')), 'unavailable'),
    'compressed, it says': (sent(told(GOOD, 'Content-Encoding: gzip')), 'unavailable'),
    'a bomb': (sent(told(gzip.compress(bytes(40_000_000)), 'Content-Encoding: gzip')), 'unavailable'),
    'chunks of no size': (sent(CHUNKED + b'zz\r\n' + GOOD), 'unavailable'),
    'chunks without end': (sent(CHUNKED + f'{len(GOOD):x}\r\n'.encode() + GOOD + b'\r\n'), 'unavailable'),
    'moved to where it may not look': (
        sent(told(b'', 'Location: http://169.254.169.254/', status='307 Moved')), 'refused'),
}  # fmt: skip


def text(backend, cls, url, **fields):
    section = {'backend': backend, 'base_url': url} | fields
    search = cls(parse_config({'text_search': section | QUICK}).text_search)
    return lambda: search.search('tower', 3)


def judge(url):
    section = {'backend': 'openai', 'base_url': url, 'model': 'm'} | QUICK
    model = ModelJudge(parse_config({'judge': section}).judge)
    return lambda: model.judge('q', ['Paris'], 'the French capital', ())


QUICK = {'timeout_s': TIMEOUT_S, 'limits': {'attempts': 1, 'breaker_failures': 1000}}
SERVICES = {
    'serper': lambda url: text('serper', SerperTextSearch, url),
    'retriever': lambda url: text('retriever', RetrieverTextSearch, url),
    'opensearch': lambda url: text('opensearch', OpenSearchTextSearch, url, index='wiki'),
    'model': judge,
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv('SERPER_API_KEY', 'k')


@pytest.mark.parametrize('service', SERVICES)
@pytest.mark.parametrize('lie', LIES)
def test_a_lie_is_a_failure_with_a_kind_in_time(service, lie):
    answer, kind = LIES[lie]
    with raw_peer(answer) as url:
        ask, start = SERVICES[service](url), time.monotonic()
        with pytest.raises(ToolError) as error:
            ask()
        assert error.value.kind == kind and time.monotonic() - start < TIMEOUT_S + 0.5


@pytest.mark.parametrize('service', SERVICES)
def test_what_is_left_of_one_answer_is_not_the_next(service):
    """The first answer is followed by another one on the same connection, which nobody asked for."""
    answers = iter([sent(told(GOOD) + told(OTHER), hold_s=2), sent(told(GOOD))])
    with raw_peer(lambda connection: next(answers)(connection)) as url:
        ask = SERVICES[service](url)
        assert ask() in ([], True)
        try:
            assert ask() in ([], True)
        except ToolError as error:
            assert error.kind in ('unavailable', 'timeout')


def test_results_that_no_json_can_hold(stand_in, tmp_path):
    """Half a character becomes a question mark; a score that is no number makes the answer none."""
    document = {'contents': 'A \ud800 title\nA \udfff text'}
    config = parse_config({
        'text_search': {'backend': 'retriever', 'base_url': stand_in.url} | QUICK,
        'images': {'directory': str(tmp_path / 'images')},
        'mode': 'record', 'answers': {'path': str(tmp_path / 'a.sqlite')},
    })  # fmt: skip
    service = ToolService(config)
    service.load()
    with TestClient(create_app(service, config), base_url='http://localhost') as client:
        for score, status in ((1.5, 200), (float('nan'), 503), (float('inf'), 503)):
            stand_in.answers['/retrieve'] = as_json(
                {'result': [[{'document': document, 'score': score}]]}
            )
            answer = client.post('/text_search', json={'query': f'scored {score}'})
            assert answer.status_code == status
            if status == 200:
                assert answer.json()['results'] == [
                    {'title': 'A ? title', 'text': 'A ? text', 'score': 1.5}
                ]
            else:
                assert (
                    answer.json()['kind'] == 'unavailable'
                    and 'unknown form' in answer.json()['message']
                )
    service.close()


def test_no_more_results_than_were_asked_for(stand_in):
    passage = {'title': 'T', 'text': 'x', 'snippet': 'x', 'contents': 'T\nx'}
    hit = {'_source': passage, '_score': 1.0}
    stand_in.answers |= {
        '/retrieve': as_json({'result': [[passage] * 9]}),
        '/wiki/_search': as_json({'hits': {'hits': [hit] * 9}}),
        '/search': as_json({'organic': [passage] * 9}),
    }
    for service in ('serper', 'retriever', 'opensearch'):
        assert len(SERVICES[service](stand_in.url)()) == 3
