"""Memory for the bodies of requests: one is read only once there is room for all of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from tools_server.failures import ToolError

# a body up to this size waits for nobody: as much may wait in the connection anyway
SMALL_BYTES = 65_536


class BodyRoom:
    """A bound in bytes for bodies that are in memory at the same time; first come, first served.

    Used by one event loop.

    Args:
        max_bytes: the bound; a larger body has all of it alone.
        queue: bodies that may wait for room; further ones are sent away.
    """

    def __init__(self, max_bytes: int, queue: int):
        self._max_bytes = max_bytes
        self._queue = queue
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that are taken now."""
        return self._used

    @property
    def crowded(self) -> bool:
        """Whether bodies wait for room."""
        return bool(self._waiting)

    @contextlib.asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Room for a body of `size` bytes, for as long as the block takes.

        Raises:
            ToolError: 'unavailable' with status 429; too many wait.
        """
        if size <= SMALL_BYTES:
            yield
            return
        size = min(size, self._max_bytes)
        if self._waiting or self._used + size > self._max_bytes:
            if len(self._waiting) >= self._queue:
                raise ToolError(
                    'unavailable', 'too many large requests are waiting', 429, retry_after_s=1.0
                )
            place = size, asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place[1]
            except BaseException:
                if place[1].done() and not place[1].cancelled():  # its turn came as it gave up
                    self._leave(size)
                else:
                    self._waiting.remove(place)
                    self._admit()
                raise
        else:
            self._used += size
        try:
            yield
        finally:
            self._leave(size)

    def _leave(self, size: int) -> None:
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self._max_bytes:
            size, place = self._waiting.popleft()
            if not place.done():
                self._used += size
                place.set_result(None)
