"""HTTP connections that keep to the current deadline whatever the other side does.

A socket's own time-out starts anew with every byte, so a peer that sends one byte now and then
could hold a caller for ever; here a timer closes the socket at the deadline while headers are read,
and the body is read in pieces between which the clock is looked at.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from tools_server.failures import ToolError
from tools_server.limits import deadline

CHUNK = 65_536
Dial = Callable[[str, int, float], socket.socket]


def dial(address: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection to an IP address.

    Args:
        address: IPv4 or IPv6.
        port: of the other side.
        timeout_s: longest time for connecting, in seconds.

    Raises:
        OSError: there is none to be had.
    """
    return socket.create_connection((address, port), timeout_s)


class _Timed:
    """Ends the wait for an answer's headers at the deadline."""

    _aborted = False

    def getresponse(self):
        timer = threading.Timer(max(0.0, min(deadline.left(), threading.TIMEOUT_MAX)), self._abort)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        if self._aborted:  # the end of the connection looks like the end of the headers
            raise TimeoutError
        return response

    def _abort(self) -> None:
        self._aborted = True
        if (sock := self.sock) is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed meanwhile


class TimedHTTPConnection(_Timed, HTTPConnection):
    """An HTTP connection that keeps to the current deadline."""


class TimedHTTPSConnection(_Timed, HTTPSConnection):
    """An HTTPS connection that keeps to the current deadline."""


def timed_pools(connections: int) -> urllib3.PoolManager:
    """Connection pools of a service that the configuration names; keeps so many connections open."""
    manager = urllib3.PoolManager(num_pools=4, maxsize=connections, retries=False)
    manager.pool_classes_by_scheme = {'http': _HTTPPool, 'https': _HTTPSPool}
    return manager


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = TimedHTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = TimedHTTPSConnection


def pinned_pool(
    scheme: str, host: str, port: int, addresses: Sequence[str], dialler: Dial
) -> urllib3.HTTPConnectionPool:
    """A pool for one request to a host, whose connection goes to one of `addresses` and nowhere
    else.

    Host header, server name and certificate are the host's: nothing is resolved again.

    Args:
        scheme: 'http' or 'https'.
        host: name that was resolved and checked.
        port: of the host.
        addresses: IP addresses of the host that may be connected to.
        dialler: makes the connection.
    """

    class Pinned:
        def _new_conn(self) -> socket.socket:
            problem: OSError | None = None
            for address in addresses:
                try:
                    return dialler(address, port, max(0.01, deadline.left()))
                except OSError as error:
                    problem = error
            raise urllib3.exceptions.NewConnectionError(self, f'no connection: {problem}')

    base, pool = (
        (TimedHTTPConnection, urllib3.HTTPConnectionPool)
        if scheme == 'http'
        else (TimedHTTPSConnection, urllib3.HTTPSConnectionPool)
    )
    made = pool(host, port, maxsize=1, retries=False)
    made.ConnectionCls = type('PinnedConnection', (Pinned, base), {})
    return made


def timed_out(error: Exception) -> bool:
    """Whether a request took too long; urllib3 counts a refused connection as a kind of that."""
    late = isinstance(error, urllib3.exceptions.TimeoutError)
    return late and not isinstance(error, urllib3.exceptions.NewConnectionError)


def send(
    pools: urllib3.PoolManager,
    method: str,
    url: str,
    data: bytes | None,
    headers: Mapping[str, str],
) -> urllib3.BaseHTTPResponse:
    """Sends a request, once, and waits for the headers of its answer until the current deadline.

    Args:
        pools: see `timed_pools`.
        method: of HTTP.
        url: of the service.
        data: the body; None sends none.
        headers: of the request.

    Raises:
        urllib3.exceptions.HTTPError, OSError: no answer; `timed_out` tells why.
    """
    seconds = max(0.001, min(deadline.left(), threading.TIMEOUT_MAX))
    return pools.urlopen(
        method, url, body=data, headers=headers, redirect=False, retries=False,
        preload_content=False, timeout=urllib3.Timeout(connect=seconds, read=seconds),
    )  # fmt: skip


def received(response: urllib3.BaseHTTPResponse, max_bytes: int, name: str) -> bytes:
    """The body of an answer, see `read_body`; its connection is kept if the body is whole."""
    try:
        data = read_body(response, max_bytes, name)
    except BaseException:
        response.close()  # what is still to come must not be taken for the next answer
        raise
    response.release_conn()
    return data


def read_body(response: urllib3.BaseHTTPResponse, max_bytes: int, name: str) -> bytes:
    """Reads a streamed answer until the current deadline.

    Args:
        response: whose body has not been read.
        max_bytes: of the body, decompressed; a longer one is a failure.
        name: of the other side, for messages.

    Raises:
        ToolError: 'timeout' or 'unavailable'.
    """
    data = bytearray()
    try:
        while True:
            connection = response.connection
            if connection is not None and connection.sock is not None:
                connection.sock.settimeout(max(0.001, min(deadline.left(), threading.TIMEOUT_MAX)))
            # read1 returns what has come: a service that sends a byte at a time cannot hold a call
            # for long.
            chunk = response.read1(CHUNK, decode_content=True)
            if not chunk:
                break
            data += chunk
            if len(data) > max_bytes:
                raise ToolError('unavailable', f'{name} sent more than {max_bytes} bytes')
            deadline.require_time(name)
    except urllib3.exceptions.TimeoutError:
        raise ToolError(
            'timeout', f'{name} stopped sending before its answer was complete', retryable=True
        ) from None
    except (urllib3.exceptions.HTTPError, OSError):
        if deadline.left() <= 0:
            raise ToolError('timeout', f'{name} was still sending when its time was over') from None
        raise ToolError('unavailable', f'{name} broke off its answer', retryable=True) from None
    return bytes(data)
