"""Connections with time limits of their own, and a limit on how many there are.

uvicorn waits for ever for headers that were begun, and for a peer that does not read its answer; so
a thousand such peers took all descriptors of a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 4096  # of each the server may hold some 130 kB in buffers
KEPT_DESCRIPTORS = 200  # for everything else: back ends, files, workers
# longest time from the first byte of a request, or from connecting, to the end of its headers
HEADERS_S = 10.0
READING_S = 60.0  # longest time in which a peer takes nothing of its answer


def most_connections() -> int:
    """Connections there may be, after this process was allowed all descriptors it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + KEPT_DESCRIPTORS
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # where it may not, what it has must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return max(16, min(MOST_CONNECTIONS, soft - KEPT_DESCRIPTORS if soft > 0 else MOST_CONNECTIONS))


def limited_protocol(
    most: int, headers_s: float = HEADERS_S, reading_s: float = READING_S
) -> type[H11Protocol]:
    """Uvicorn's HTTP protocol within limits.

    Args:
        most: connections; one more takes the place of the one that has waited longest for a
            request.
        headers_s: longest time for the headers of a request.
        reading_s: longest time in which a peer takes nothing of its answer.
    """

    class LimitedProtocol(H11Protocol):
        _headers_timer: asyncio.TimerHandle | None = None
        _reading_timer: asyncio.TimerHandle | None = None
        _waits_since = 0.0

        @property
        def _at_work(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._waits_since = time.monotonic()
            if len(self.connections) > most:
                idle = [c for c in self.connections if c is not self and not c._at_work]
                (min(idle, key=lambda c: c._waits_since) if idle else self).transport.abort()
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._at_work or self.transport.is_closing():
                self._stop_headers_timer()
            elif self._headers_timer is None:
                self._await_headers()

        def on_response_complete(self) -> None:
            self._waits_since = time.monotonic()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading_timer = self.loop.call_later(reading_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_reading_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_headers_timer()
            self._stop_reading_timer()
            super().connection_lost(exc)
            self._stop_reading_timer()

        def _await_headers(self) -> None:
            self._headers_timer = self.loop.call_later(headers_s, self.transport.abort)

        def _stop_headers_timer(self) -> None:
            if self._headers_timer is not None:
                self._headers_timer.cancel()
                self._headers_timer = None

        def _stop_reading_timer(self) -> None:
            if self._reading_timer is not None:
                self._reading_timer.cancel()
                self._reading_timer = None

    return LimitedProtocol
