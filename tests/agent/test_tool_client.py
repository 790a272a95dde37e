"""The tool client against servers that answer, stall, drip, lie, and die; it returns values,
whatever happens."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable

import pytest

from sensesearch_jax.agent.tool_client import Match, Passage, ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef
from tools_server.launch import ToolServer


class Peer:
    """A TCP server whose handler a test writes; counts its connections."""

    def __init__(self, handle: Callable[[socket.socket, int], None]):
        outer, self.connections = self, 0

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                try:
                    handle(self.request, outer.connections)
                except OSError:
                    pass  # the client hung up

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> 'Peer':
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def respond(body: bytes, status: str = '200 OK') -> Callable[[socket.socket, int], None]:
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65_536)
        connection.sendall(
            f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'.encode()
            + body
        )

    return handle


def test_values():
    sha = 'a' * 64
    passages = b'{"results": [{"title": "t", "text": "x", "score": 1}]}'
    thumbnail = b'{"sha256": "%s", "width": 56, "height": 56}' % sha.encode()
    matches = b'{"results": [{"title": "t", "thumbnail": ' + thumbnail + b', "score": 0.9}]}'
    with Peer(respond(passages)) as peer:
        assert ToolClient(peer.url + '/').text_search('q') == [Passage('t', 'x', 1.0)]
    with Peer(respond(matches)) as peer:
        assert ToolClient(peer.url).image_search(sha) == [Match('t', ImageRef(sha, 56, 56), 0.9)]
    with Peer(respond(b'{"verdict": false}')) as peer:
        assert ToolClient(peer.url).judge('q', ['r'], 'x') is False
    with Peer(respond(b'\x89PNG')) as peer:
        assert ToolClient(peer.url).image(sha) == b'\x89PNG'


@pytest.mark.parametrize(
    'kind, status',
    [('caller', '400 X'), ('refused', '502 X'), ('timeout', '504 X'), ('unavailable', '503 X')],
)
def test_failures_of_the_server_keep_their_kind(kind, status):
    with Peer(respond(f'{{"kind": "{kind}", "message": "why"}}'.encode(), status)) as peer:
        assert ToolClient(peer.url).text_search('q') == ToolFailure(kind, 'why')


def test_an_image_that_the_server_lost_is_no_mistake_of_the_policy():
    with Peer(respond(b'{"kind": "caller", "message": "there is no such image"}', '404 X')) as peer:
        assert ToolClient(peer.url).crop('a' * 64, (0, 0, 1, 1)).kind == 'unavailable'


def busy(retry_after: bytes) -> Callable[[socket.socket, int], None]:
    def handle(connection: socket.socket, number: int) -> None:
        if number > 2:
            return respond(b'{"results": []}')(connection, number)
        connection.recv(65_536)
        body = b'{"kind": "unavailable", "message": "too many calls"}'
        head = (
            b'HTTP/1.1 429 X\r\nRetry-After: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n'
        )
        connection.sendall(head % (retry_after, len(body)) + body)

    return handle


def test_a_busy_server_is_asked_again_while_there_is_time():
    with Peer(busy(b'0')) as peer:
        assert ToolClient(peer.url).text_search('q') == [] and peer.connections == 3
    for wait in (b'60', b'soon', b'9' * 400):
        with Peer(busy(wait)) as peer:
            assert ToolClient(peer.url, deadline_s=2).text_search('q').kind == 'unavailable'
            assert peer.connections == 1


def test_token_and_deadline_are_sent(monkeypatch):
    seen = []

    def handle(connection: socket.socket, number: int) -> None:
        seen.append(connection.recv(65_536))
        connection.sendall(
            b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"results": []}'
        )

    monkeypatch.setenv('TOOLS_SERVER_TOKEN', 'from-the-environment')
    with Peer(handle) as peer:
        ToolClient(peer.url).text_search('q')
        ToolClient(peer.url, deadline_s=3, token='given').text_search('q')
    assert b'Bearer from-the-environment' in seen[0] and b'Bearer given' in seen[1]
    assert b'X-Deadline-S: 2.9' in seen[1] or b'X-Deadline-S: 3.0' in seen[1]


@pytest.mark.parametrize(
    'body, status',
    [(b'<html>', '200 OK'), (b'{}', '200 OK'), (b'[]', '200 OK'), (b'{"results": 3}', '200 OK'),
     (b'', '500 X'), (b'{"kind": "odd", "message": ""}', '400 X'), (b'{"kind": []}', '400 X')],
)  # fmt: skip
def test_nonsense_is_unavailable(body, status):
    with Peer(respond(body, status)) as peer:
        assert ToolClient(peer.url).text_search('q').kind == 'unavailable'


def test_verdict_must_be_a_boolean():
    with Peer(respond(b'{"verdict": "false"}')) as peer:
        assert ToolClient(peer.url).judge('q', ['r'], 'x').kind == 'unavailable'


def silent(connection: socket.socket, number: int) -> None:
    connection.recv(65_536)
    time.sleep(3)


def dripping(connection: socket.socket, number: int) -> None:
    connection.recv(65_536)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n')
    for _ in range(30):
        connection.sendall(b' ')
        time.sleep(0.1)


def stalling(connection: socket.socket, number: int) -> None:
    connection.recv(65_536)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{')
    time.sleep(3)


@pytest.mark.parametrize('handle', [silent, dripping, stalling])
def test_deadline_holds(handle):
    with Peer(handle) as peer:
        start = time.monotonic()
        assert ToolClient(peer.url, deadline_s=0.4).text_search('q').kind == 'timeout'
        assert time.monotonic() - start < 0.8


def test_broken_connection_is_tried_again_once():
    def handle(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.close()
        else:
            respond(b'{"results": []}')(connection, number)

    with Peer(handle) as peer:
        assert ToolClient(peer.url).text_search('q') == []
        assert peer.connections == 2
    with Peer(lambda connection, number: connection.close()) as peer:
        assert ToolClient(peer.url).text_search('q').kind == 'unavailable'
        assert peer.connections == 2


def test_half_an_answer_is_unavailable():
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65_536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"results"')

    with Peer(handle) as peer:
        assert ToolClient(peer.url).text_search('q').kind == 'unavailable'


def test_callers_own_mistakes(tmp_path):
    client = ToolClient('http://127.0.0.1:9')
    assert client.upload(tmp_path / 'missing.jpg').kind == 'caller'
    assert client.crop('a' * 64, (0, 0, float('inf'), 1)).kind == 'caller'


def test_killed_server_is_a_value(tmp_path):
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        client = ToolClient(server.url, deadline_s=5)
        assert client.judge('q', ['Paris'], 'paris') is True
        client.deadline_s = 0.5  # it waits so long for another server on this port
        server.process.kill()
        server.process.wait()
        start = time.monotonic()
        for failure in (
            client.judge('q', ['Paris'], 'x'),
            client.upload(b'x'),
            client.image('a' * 64),
            client.health(),
        ):
            assert isinstance(failure, ToolFailure) and failure.kind == 'unavailable'
        assert time.monotonic() - start < 3


def test_a_wrong_address_is_told_at_once():
    with socket.socket() as bound:  # and nobody listens
        bound.bind(('127.0.0.1', 0))
        start = time.monotonic()
        failure = ToolClient(f'http://127.0.0.1:{bound.getsockname()[1]}', deadline_s=60).health()
    assert failure.kind == 'unavailable' and 'cannot be reached' in failure.message
    assert time.monotonic() - start < 20


def starting(connection: socket.socket, number: int) -> None:
    if number > 2:
        return respond(b'{"results": []}')(connection, number)
    connection.recv(65_536)
    body = b'{"kind": "unavailable", "message": "still loading", "backend": null}'
    head = b'HTTP/1.1 503 X\r\nRetry-After: 0\r\nContent-Length: %d\r\nConnection: close\r\n\r\n'
    connection.sendall(head % len(body) + body)


def test_a_server_that_starts_or_stops_is_waited_for_and_one_whose_service_fails_is_not():
    with Peer(starting) as peer:
        assert ToolClient(peer.url).text_search('q') == [] and peer.connections == 3
    failure = b'{"kind": "unavailable", "message": "Serper is left alone", "backend": "serper"}'
    with Peer(respond(failure, '503 X\r\nRetry-After: 0')) as peer:
        assert ToolClient(peer.url).text_search('q').kind == 'unavailable' and peer.connections == 1


def test_a_restart_is_ridden_out_within_the_deadline(tmp_path):
    with ToolServer.start({}, tmp_path, ready_timeout_s=120) as server:
        client = ToolClient(server.url, deadline_s=60)
        assert client.judge('q', ['Paris'], 'paris') is True
        port = int(server.url.rpartition(':')[2])
    answers, started = [], time.monotonic()
    calls = [
        threading.Thread(
            target=lambda n=n: answers.append(client.judge(f'q {n}', ['Paris'], 'paris'))
        )
        for n in range(8)
    ]
    for call in calls:
        call.start()
    time.sleep(0.5)
    assert not answers  # nobody listens, and nobody gave up
    with ToolServer.start({}, tmp_path, port=port, ready_timeout_s=120):
        for call in calls:
            call.join()
    assert answers == [True] * 8 and time.monotonic() - started < 60
