"""A pool of worker processes for input that may be hostile.

    pool = WorkerPool('pages', size=2, memory_bytes=300_000_000,
    modules=['tools_server.pages.extract']) text = pool.run('tools_server.pages.extract:text_of',
    data, 'text/html', seconds=3)

A library that decodes or parses may loop, take all memory or crash on a file made for that. In a
process of its own that costs one call: the process is killed at the limit and another takes its
place. Processes are started anew and never forked from the server, which has threads; the threads
that call wait for them, so the pool has none of its own.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

from tools_server.failures import FailureKind, ToolError
from tools_server.limits import deadline
from tools_server.workers.messages import receive, send

START_S = 60.0  # longest time in which a worker must have imported its modules
# A worker reads hostile files: of the environment it gets what a program needs to run, and no keys.
ENVIRONMENT = (
    'PATH', 'HOME', 'LANG', 'LC_ALL', 'TMPDIR', 'LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH',
    'PYTHONHOME',
)  # fmt: skip


class WorkFailed(Exception):
    """A worker gave no result; the message is a clause such as 'took longer than 3 s'.

    Attributes:
        reason: 'time' (longer than its limit), 'memory' (more than its limit), 'crash' (the process
            died), or 'error' (the function raised).
    """

    def __init__(self, reason: Literal['time', 'memory', 'crash', 'error'], message: str):
        super().__init__(message)
        self.reason = reason


class WorkerPool:
    """Runs functions in processes of limited time and memory. Safe to share between threads.

    Args:
        name: of what the workers do, for messages.
        size: processes, started when first needed, or by `warm`.
        memory_bytes: by how much a job may make its process grow, and its longest result (Linux
            only).
        modules: imported when a process starts, so that the first job need not wait and the
            libraries do not count as its memory.
    """

    def __init__(self, name: str, size: int, memory_bytes: int, modules: Sequence[str] = ()):
        self._name = name
        self._size = size
        self._memory_bytes = memory_bytes
        self._modules = modules
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._working: dict[_Worker, bool] = {}  # whether its job is a large one
        # size and number of each job that waits, the next one first
        self._waiting: list[tuple[int, int]] = []
        self._numbers = itertools.count()
        self._closed = False
        self.replaced = 0  # processes that were killed or died

    def warm(self) -> None:
        """Starts all processes and does not wait for them.

        Raises:
            ToolError: 'unavailable'; one cannot be started.
        """
        with self._changed:
            while not self._closed and len(self._idle) + len(self._working) < self._size:
                self._idle.append(self._start())

    def run(self, function: str, *values: Any, seconds: float, large: bool = False) -> Any:
        """The result of a function in a worker.

        Args:
            function: 'package.module:name'. It may raise ToolError, which is raised here again.
            values: its arguments, each of them bytes (it gets a bytearray) or JSON-able; so is its
                result, or each member of it where that is a tuple.
            seconds: longest time of the work itself; the wait for a free worker is not part of it.
            large: it may take much longer than others: one worker, where there are several, is kept
                free of such.

        Raises:
            WorkFailed: it took too long or too much memory, crashed, or raised something else.
            ToolError: the function's; 'timeout' where the current deadline comes first, or no
                worker is free until then; 'unavailable' where none can be started, and after
                `close`.
        """
        worker = self._take(sum(len(value) for value in values if isinstance(value, bytes)), large)
        sound = False
        try:
            worker.wait_until_ready()
            ours = min(
                time.monotonic() + seconds, time.monotonic() + deadline.require_time(self._name)
            )
            reply = worker.ask([function, seconds, *values], ours)
            sound = reply.pop()
        except _NotReady:
            sound = True  # it is still starting, for whoever comes next
            raise ToolError('timeout', f'{self._name}: no worker was ready in time') from None
        except TimeoutError:
            if deadline.left() <= 0:
                raise ToolError('timeout', f'{self._name} was not done in time') from None
            raise WorkFailed('time', f'took longer than {seconds:g} s') from None
        except (
            OSError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            RecursionError,
        ) as error:
            if self._closed:
                raise ToolError('unavailable', 'the server is closing') from None
            raise WorkFailed(
                'crash', f'ended its process ({worker.ending() or type(error).__name__})'
            ) from None
        finally:
            self._give_back(worker, sound)
        return self._result(reply)

    def _result(self, reply: list[Any]) -> Any:
        match reply:
            case ['value', value]:
                return value
            case ['values', *values]:
                return tuple(values)
            case ['tool error', str(kind), str(message), int(status)] if kind in get_args(
                FailureKind
            ):
                raise ToolError(kind, message, status)
            case ['memory']:
                raise WorkFailed(
                    'memory', f'took more than {self._memory_bytes // 10**6} MB of memory'
                )
            case ['error', str(kind), str(message)]:
                raise WorkFailed(
                    'error', f'failed with {kind}: {message}' if message else f'failed with {kind}'
                )
        raise WorkFailed('crash', 'answered with something else than a result')

    def _take(self, size: int, large: bool) -> _Worker:
        """A worker, started if there may be one more, for a job of so many bytes.

        The smallest job goes first: what is made to take long is large, and must not hold up what
        is not.
        """
        with self._changed:
            turn = size, next(self._numbers)
            bisect.insort(self._waiting, turn)
            try:
                while True:
                    if self._closed:
                        raise ToolError('unavailable', 'the server is closing')
                    if self._waiting[0] == turn and (worker := self._free(large)) is not None:
                        self._working[worker] = large
                        return worker
                    wait = min(
                        deadline.require_time(f'the wait for {self._name}'), threading.TIMEOUT_MAX
                    )
                    self._changed.wait(wait)
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()  # it is another one's turn

    def _free(self, large: bool) -> _Worker | None:
        """A worker that lives and has nothing to do, or a new one; None where there may be no more."""
        if large and sum(self._working.values()) >= max(1, self._size - 1):
            return None
        while self._idle:
            # One that is still starting, if any, is first: who takes long may wait for it.
            worker = self._idle.pop(0 if large else -1)
            if worker.alive():
                return worker
            worker.kill()
            self.replaced += 1
        return self._start() if len(self._working) < self._size else None

    def _give_back(self, worker: _Worker, sound: bool) -> None:
        if not sound:
            worker.kill()
        with self._changed:
            self._working.pop(worker, None)
            if self._closed:
                worker.kill()
            elif sound:
                self._idle.insert(len(self._idle) if worker.ready else 0, worker)
            else:
                self.replaced += 1
                # At once, for a process takes long to start on a busy machine.
                with contextlib.suppress(ToolError):  # the next job tries again, and says so
                    self._idle.insert(0, self._start())
            self._changed.notify_all()

    def _start(self) -> _Worker:
        try:
            return _Worker(self._memory_bytes, self._modules)
        except OSError as error:
            raise ToolError(
                'unavailable', f'no process for {self._name} can be started: {error.strerror}'
            ) from None

    def statistics(self) -> dict[str, int]:
        """Processes that are there, at work, and that had to be replaced."""
        with self._changed:
            working = len(self._working)
            return {
                'processes': working + len(self._idle),
                'working': working,
                'replaced': self.replaced,
            }

    def close(self) -> None:
        """Kills all processes; calls that wait for one end with 'unavailable'."""
        with self._changed:
            self._closed = True
            for worker in self._working:
                worker.stop()  # its call, in another thread, sees that and gives it back
            for worker in self._idle:
                worker.kill()
            self._idle.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._working, timeout=5.0)


class _NotReady(Exception):
    """A worker has not imported its modules yet."""


class _Worker:
    """One process and this side of the socket to it; used by one thread at a time."""

    def __init__(self, memory_bytes: int, modules: Sequence[str]):
        self._memory_bytes = memory_bytes
        self.ready = False
        self._started = time.monotonic()
        self._socket, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment['PYTHONPATH'] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # One arena and one thread: address space, which is what is limited, is then close to
        # memory.
        environment |= {
            'MALLOC_ARENA_MAX': '1',
            'OMP_NUM_THREADS': '1',
            'OPENBLAS_NUM_THREADS': '1',
        }
        with theirs:
            command = [sys.executable, '-m', 'tools_server.workers.worker']
            command += [str(theirs.fileno()), str(memory_bytes)]
            try:
                self._process = subprocess.Popen(
                    [*command, *modules], env=environment, pass_fds=[theirs.fileno()], start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError:
                self._socket.close()
                raise

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Waits until the modules are imported.

        Raises:
            _NotReady: the current deadline comes first.
            OSError: the process ended instead; TimeoutError, which is one: it takes too long.
        """
        if self.ready:
            return
        last = self._started + START_S
        end = min(last, time.monotonic() + deadline.left())
        try:
            greeting = receive(self._socket, 1000, end)
        except TimeoutError:
            if time.monotonic() < last:
                raise _NotReady from None
            raise
        if greeting != ['ready']:
            raise ConnectionResetError
        self.ready = True

    def ask(self, request: list[Any], end: float) -> list[Any]:
        """The reply to a request.

        Raises:
            TimeoutError: not until `end`, a time of `time.monotonic()`.
            OSError, ValueError: the process ended or sent nonsense.
        """
        send(self._socket, request, end)
        reply = receive(self._socket, self._memory_bytes, end)
        if reply is None:
            raise ConnectionResetError
        return reply

    def ending(self) -> str:
        """Way in which the process ended; '' where it did not."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return ''
        return f'signal {-code}' if code < 0 else f'status {code}'

    def stop(self) -> None:
        """Kills the process; whoever waits for it sees the end of the socket."""
        self._process.kill()

    def kill(self) -> None:
        """Kills the process, waits for its end and closes the socket."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
