"""Local stand-ins of the services that the tool server can call: right, wrong, slow or failing as a
test likes."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

Answer = tuple  # status, body and, where they matter, headers


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # callers at once


class StandIn:
    """A local HTTP service whose answers a test sets.

    Attributes:
        url: its address.
        requests: path, headers and JSON body of each request so far.
        answers: path to a function from the JSON body to status and bytes; a test replaces them.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict, dict]] = []
        self.answers: Mapping[str, Callable[[dict], Answer]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(
                    self.rfile.read(int(self.headers.get('Content-Length', 0))) or b'{}'
                )
                outer.requests.append((self.path, dict(self.headers), body))
                self._send(*outer.answers[self.path](body))

            def do_GET(self) -> None:
                self._send(*outer.answers[self.path]({}))

            def _send(
                self, status: int, data: bytes, headers: Mapping[str, str] = MappingProxyType({})
            ) -> None:
                try:
                    self.send_response(status)
                    for name, value in ({'Content-Length': str(len(data))} | dict(headers)).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the caller did not wait

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def use_tls(self, context: ssl.SSLContext) -> None:
        """From the next connection on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def raw_peer(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a peer that reads each request and then does with its connection whatever
    `answer` does."""
    listener = socket.create_server(('127.0.0.1', 0))

    def serve(connection: socket.socket) -> None:
        # the other side may have enough at any moment
        with connection, contextlib.suppress(OSError):
            request = b''
            while b'\r\n\r\n' not in request:
                request += connection.recv(65_536) or b'\r\n\r\n'
            head, _, body = request.partition(b'\r\n\r\n')
            length = head.lower().partition(b'content-length:')[2].split(b'\r\n')[0].strip()
            while len(body) < int(length or 0) and (more := connection.recv(65_536)):
                body += more
            answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'


def as_json(value: object, status: int = 200) -> Callable[[dict], Answer]:
    return lambda body: (status, json.dumps(value).encode())


def chat(reply: str) -> Callable[[dict], Answer]:
    """An OpenAI-compatible answer with this reply."""
    return as_json({'choices': [{'message': {'role': 'assistant', 'content': reply}}]})


def slow(seconds: float) -> Callable[[dict], Answer]:
    def answer(body: dict) -> Answer:
        time.sleep(seconds)
        return 200, b'{}'

    return answer
