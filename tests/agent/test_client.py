"""The tool client against servers that answer, stall, drip, lie, and die; it returns values, whatever
happens."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable

import pytest

from sensesearch_jax.agent.client import Match, Passage, ToolClient, ToolFailure
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
            f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'.encode() + body
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
    with ToolServer.start({}, tmp_path, ready_timeout_s=30) as server:
        client = ToolClient(server.url, deadline_s=5)
        assert client.judge('q', ['Paris'], 'paris') is True
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
