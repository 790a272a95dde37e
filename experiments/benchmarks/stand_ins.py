"""Local services that the tool server asks while it is measured, in a process of their own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    """A handler that does not mind callers who leave, and says nothing."""

    protocol_version = 'HTTP/1.1'

    def send(self, content: bytes, kind: str, status: int = 200, half: bool = False) -> None:
        """An answer; of one that is sent by half, the length is that of the whole."""
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        self.close_connection = self.close_connection or half

    def body(self) -> dict:
        """The JSON that came with a request."""
        return json.loads(self.rfile.read(int(self.headers['Content-Length'])))

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the server did not wait
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 256


def _serve(make: Callable[..., type[Service]], port: multiprocessing.Queue, arguments: tuple):
    server = _Server(('127.0.0.1', 0), make(*arguments))
    port.put(server.server_address[1])
    server.serve_forever()


@contextlib.contextmanager
def served(make: Callable[..., type[Service]], *arguments: object) -> Iterator[str]:
    """The address of a service that `make(*arguments)` gives, while the block runs."""
    port: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=_serve, args=(make, port, arguments), daemon=True)
    process.start()
    try:
        yield f'http://127.0.0.1:{port.get()}'
    finally:
        process.terminate()


def chat(reply: str) -> dict:
    """A chat completion as OpenAI's service gives it."""
    message = {'role': 'assistant', 'content': reply}
    return {'choices': [{'message': message, 'finish_reason': 'stop'}]}


def in_threads(work: Callable, arguments: Iterable, most_s: float = 1e6) -> None:
    """Calls `work` of each argument side by side, and waits for all of them, for so long at most."""
    end = time.monotonic() + most_s
    threads = [threading.Thread(target=work, args=(x,), daemon=True) for x in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
