"""One tool as it is served: waiting room, memory of answers, the file of answers, and counts."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from tools_server.cache import Cache
from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.limits.thread_pool import ThreadPool
from tools_server.metrics import Metrics
from tools_server.response_cache.modes import Answered, Answers

T = TypeVar('T')
NOTHING: Mapping[str, Any] = MappingProxyType({})
log = logging.getLogger('tools_server')


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A tool's result and who gave it."""

    value: T
    backend: str
    cache_hit: bool
    degraded: tuple[str, ...] = ()  # what it lacks


class ToolRunner:
    """Runs the calls of one tool: name, waiting room, and counts of calls by outcome.

    Args:
        name: of the tool.
        backend: name of its back end.
        pool: its waiting room.
        metrics: where calls are counted.
    """

    def __init__(self, name: str, backend: str, pool: ThreadPool, metrics: Metrics):
        self.name = name
        self.backend = backend
        self.pool = pool
        self._metrics = metrics
        self._outcomes: Counter[str] = Counter()

    async def run(self, call: Callable[[], tuple[T, bool]]) -> Reply[T]:
        """Runs a call that gives its value and whether it was known; counts what became of it.

        Raises:
            ToolError: the call's, with the back end's name; 'unavailable' for a mistake in this
                program.
        """

        async def answer() -> tuple[T, bool, tuple[str, ...]]:
            return *await self.work(call), ()

        return await self.counted(answer)

    async def counted(
        self, answer: Callable[[], Awaitable[tuple[T, bool, tuple[str, ...]]]]
    ) -> Reply[T]:
        """Awaits a value, whether it was known and what it lacks, and counts what became of the
        call.

        Raises:
            ToolError: the call's, with the back end's name.
        """
        start, hit, outcome = time.perf_counter(), False, 'unavailable'
        said: dict[str, Any] = {}
        try:
            value, hit, lacks = await answer()
            outcome = 'ok'
            if lacks:
                self._outcomes['degraded'] += 1
                self._metrics.observe_degraded(self.name, self.backend)
                said = {'degraded': list(lacks)}
        except ToolError as error:
            outcome = error.kind
            error.backend, error.counted = self.backend, True
            said = {'reason': error.message}
            raise
        finally:
            self.count(outcome, time.perf_counter() - start, hit, said)
        return Reply(value, self.backend, hit, lacks)

    def count(
        self, outcome: str, seconds: float, hit: bool = False, said: Mapping[str, Any] = NOTHING
    ) -> None:
        """Counts a call by its outcome, also one that came to no thread.

        Args:
            outcome: 'ok' or a failure kind.
            seconds: that it took.
            hit: whether the answer was known.
            said: fields for the log.
        """
        self._outcomes[outcome] += 1
        self._metrics.observe(self.name, self.backend, outcome, hit, seconds)
        self._log(outcome, {**said, 'cache_hit': hit, 'seconds': round(seconds, 6)})

    def _log(self, outcome: str, fields: dict[str, Any]) -> None:
        """A line for each call: a warning where it got less than it should without own fault."""
        well = outcome == 'caller' or (outcome == 'ok' and 'degraded' not in fields)
        level = logging.INFO if well else logging.WARNING
        if log.isEnabledFor(level):
            fields = {'tool': self.name, 'backend': self.backend, 'outcome': outcome} | fields
            log.log(
                level, '%s: %s', self.name, fields.get('reason', outcome), extra={'fields': fields}
            )

    async def work(self, call: Callable[[], T]) -> T:
        """The value of a call, from one of the tool's threads.

        Raises:
            ToolError: the call's or `ThreadPool.run`'s; 'unavailable' for a mistake in this program.
        """
        try:
            return await self.pool.run(call)
        except ToolError:
            raise
        except Exception as error:
            # A mistake in here must not look like one of the caller's, nor stop the server.
            log.exception('a call of %s failed', self.name)
            raise ToolError(
                'unavailable', f'the server failed ({type(error).__name__}); see its log'
            ) from error

    def statistics(self) -> dict[str, int]:
        """Calls by outcome, and how many are at work and waiting now."""
        now = {'working': self.pool.working, 'waiting': self.pool.waiting}
        return dict(self._outcomes) | now

    def close(self) -> None:
        """Starts no more calls; does not wait for those at work."""
        self.pool.close()


class CachingToolRunner(ToolRunner, Generic[T]):
    """A tool whose answers are kept: equal requests at once are worked on once, later ones not at
    all.

    Args:
        entries: answers kept in memory.
        answers: its part of the file of answers, and the mode.
    """

    def __init__(
        self,
        name: str,
        backend: str,
        pool: ThreadPool,
        metrics: Metrics,
        entries: int,
        answers: Answers[T],
    ):
        super().__init__(name, backend, pool, metrics)
        self._answers = answers
        self._memory = Cache(entries)
        self._pending: dict[str, asyncio.Future] = {}
        self._joined = 0  # calls that waited for another's answer

    async def ask(
        self,
        request: dict[str, Any],
        compute: Callable[[], T],
        holds: Callable[[T], bool] | None = None,
    ) -> Reply[T]:
        """The answer to a request, from memory, the file of answers or the back end.

        Args:
            request: JSON-able; equal ones have equal answers.
            compute: asks the back end, on one of the tool's threads.
            holds: whether an answer in memory is still right; one that is not is not given.

        Raises:
            ToolError: see `ToolRunner.run`.
        """
        return await self.counted(lambda: self._answer(request, compute, holds))

    async def _answer(
        self, request: dict[str, Any], compute: Callable[[], T], holds: Callable[[T], bool] | None
    ) -> tuple[T, bool, tuple[str, ...]]:
        key = self._answers.key(request)
        while True:
            if (pending := self._pending.get(key)) is not None:
                self._joined += 1
                done, _ = await asyncio.wait({pending}, timeout=deadline.require_time(self.name))
                if not done:
                    raise ToolError('timeout', f'{self.name} was not done in time')
                problem = pending.exception()
                if problem is None:
                    answered = pending.result()
                    return answered.value, True, answered.degraded
                if (
                    isinstance(problem, ToolError)
                    and problem.kind == 'timeout'
                    and deadline.left() > 0.05
                ):
                    continue  # the other caller had less time than this one
                try:
                    raise problem
                finally:
                    del problem, pending, done  # see `ThreadPool.run`
            kept = self._memory.get(key)
            if (
                kept is not None
                and time.monotonic() < kept[0]
                and (holds is None or holds(kept[1].value))
            ):
                return kept[1].value, True, kept[1].degraded
            answered = await self._own(key, request, compute)
            return answered.value, answered.from_disk, answered.degraded

    async def _own(
        self, key: str, request: dict[str, Any], compute: Callable[[], T]
    ) -> Answered[T]:
        future = self._pending[key] = asyncio.get_running_loop().create_future()
        # seen, if none waits
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            answered = await self.work(lambda: self._answers.answer(request, compute))
        except BaseException as error:
            # a caller that left must not stop those that wait
            stopped = not isinstance(error, Exception)
            future.set_exception(
                ToolError('timeout', 'the first caller left') if stopped else error
            )
            del future  # see `ThreadPool.run`
            raise
        finally:
            del self._pending[key]
        ends = math.inf if answered.lasts_s is None else time.monotonic() + answered.lasts_s
        self._memory.put(key, (ends, answered))
        future.set_result(answered)
        return answered

    def cache_statistics(self) -> dict[str, int]:
        """Answers kept in memory; calls answered without the back end, and with it."""
        memory = self._memory.statistics()
        known = memory['hits'] + self._joined + self._answers.hits
        return {
            'entries': memory['entries'],
            'hits': known,
            'misses': memory['misses'] - self._answers.hits,
        }
