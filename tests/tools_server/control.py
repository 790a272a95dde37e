"""A server that does nothing, asked beside the one under test: how late others make answers."""

import http.client
import subprocess
import sys
import time

MOST_SLACK_S = 3.0  # what holds a server up takes longer than this
CODE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(('127.0.0.1', 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Control:
    """A process whose answers are late only where the machine is busy.

    Attributes:
        longest_s: the longest wait for an answer.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._process = subprocess.Popen(
            [sys.executable, '-c', CODE], stdout=subprocess.PIPE, text=True
        )
        port = int(self._process.stdout.readline())
        self._connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)

    def ask(self) -> None:
        start = time.perf_counter()
        self._connection.request('GET', '/')
        self._connection.getresponse().read()
        self.longest_s = max(self.longest_s, time.perf_counter() - start)

    @property
    def slack_s(self) -> float:
        """Seconds by which an answer of any server may be later than on an idle machine."""
        return min(3 * self.longest_s, MOST_SLACK_S)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
