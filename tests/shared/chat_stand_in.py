"""A local service that speaks the chat-completions API, with replies and faults that a test sets."""

import contextlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict
    body: dict


def completion(*texts, prompt=100, written=20, finish='stop'):
    """A chat completion with a choice per text."""
    choices = [
        {'message': {'role': 'assistant', 'content': text}, 'finish_reason': finish}
        for text in texts
    ]
    usage = {
        'prompt_tokens': prompt,
        'completion_tokens': written,
        'total_tokens': prompt + written,
    }
    return {'choices': choices, 'usage': usage}


class ChatStandIn:
    """The service.

    Attributes:
        url: its address, with /v1.
        requests: those that came.
        replies: taken one after another: a text, a completion, a status, (status, body, headers),
            'late' (no answer) or 'cut' (half of one); or a function of the request that gives one.
    """

    def __init__(self):
        self.requests, self.replies, self._lock = [], [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                request = Request(self.path, dict(self.headers), body)
                with outer._lock:
                    outer.requests.append(request)
                    reply = outer.replies if callable(outer.replies) else outer.replies.pop(0)
                with contextlib.suppress(OSError):
                    self._send(reply(request) if callable(reply) else reply)

            def _send(self, reply):
                status, headers, cut = 200, {}, reply == 'cut'
                if reply == 'late':
                    self.connection.recv(1)  # until the client has had enough
                    self.close_connection = True
                    return
                if isinstance(reply, int):
                    status, reply = reply, {'error': {'message': 'no'}}
                elif isinstance(reply, tuple):
                    status, reply, headers = reply
                elif isinstance(reply, str):
                    reply = completion(reply)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in {**headers, 'Content-Length': str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = cut

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}/v1'


@contextlib.contextmanager
def chat_stand_in():
    """The service while the block runs."""
    service = ChatStandIn()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()
        thread.join()
