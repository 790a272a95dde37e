"""Threads of one tool: so many calls at work, so many waiting, the rest sent away at once.

A tool has threads of its own, so one whose back end hangs holds up no other. A call that passes its
deadline is answered then; its thread keeps its place until the back end lets go of it, so that
neither threads nor memory grow with the number of calls that were given up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tools_server.failures import ToolError
from tools_server.limits import deadline

T = TypeVar('T')


class ThreadPool:
    """Runs blocking calls of one tool on its own threads.

    Args:
        name: of the tool, for messages.
        threads: calls at work at the same time.
        queue: calls that may wait for a thread.
    """

    def __init__(self, name: str, threads: int, queue: int):
        self._name = name
        self._threads = threads
        self._queue = queue
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        # at work or waiting, those given up included; changed by the event loop only
        self._inside = 0
        self._mean_s = 0.1  # of recent calls, to say when to come again

    @property
    def working(self) -> int:
        """Calls at work, those included that were given up and still hold their thread."""
        return min(self._inside, self._threads)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return max(0, self._inside - self._threads)

    async def run(self, call: Callable[[], T]) -> T:
        """The value of `call`, from one of the tool's threads, before the current deadline.

        Raises:
            ToolError: 'unavailable' with status 429 when the waiting room is full; 'timeout' at the
                deadline; whatever `call` raises.
        """
        seconds = deadline.require_time(self._name)
        if self._inside >= self._threads + self._queue:
            wait = max(0.1, self._mean_s * self._queue / self._threads)
            raise ToolError(
                'unavailable',
                f'too many calls of {self._name} are waiting',
                429,
                retry_after_s=wait,
            )
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._inside += 1
        job = self._pool.submit(contextvars.copy_context().run, _unless_late, call, self._name)
        job.add_done_callback(lambda _: self._from_thread(loop, started))
        future = asyncio.wrap_future(job)
        # seen, if given up
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if not done:
            job.cancel()  # one that still waits never starts; one at work cannot be stopped
            raise ToolError('timeout', f'{self._name} was not done within {seconds:.3g} s')
        try:
            return future.result()
        finally:
            # A failure holds the frames that it came through, with all that a service sent; were it held by
            # one of them, only the garbage collector would free that, much later.
            del future, job, done

    def _from_thread(self, loop: asyncio.AbstractEventLoop, started: float) -> None:
        try:
            loop.call_soon_threadsafe(self._left, started, loop)
        except RuntimeError:
            pass  # the server ended meanwhile

    def _left(self, started: float, loop: asyncio.AbstractEventLoop) -> None:
        self._inside -= 1
        self._mean_s += 0.1 * (loop.time() - started - self._mean_s)

    def close(self) -> None:
        """Starts no more calls; does not wait for those at work."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _unless_late(call: Callable[[], T], name: str) -> T:
    deadline.require_time(name)
    return call()
