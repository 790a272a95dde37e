"""A virtual clock, and threads whose work takes time on it alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Segment(NamedTuple):
    """A time that an engine spent on one kind of work, or of waiting; seconds of the clock."""

    kind: str
    start: float
    end: float


@dataclass
class Clock:
    """The time of one host, which moves where something says that it takes time.

    Args:
        compile_s: seconds of compiling a program.
        now: seconds since the run began.
        segments: where the engine whose turn it is notes its time.
        known: programs that are compiled already.
    """

    compile_s: float = 0.0
    now: float = 0.0
    segments: list[Segment] = field(default_factory=list)
    known: set[tuple[str, Hashable]] = field(default_factory=set)

    def until(self, kind: str, moment: float) -> None:
        """Work or waiting of a kind until a moment, which may be past."""
        if moment > self.now:
            start, last = self.now, self.segments[-1] if self.segments else None
            if last and (last.kind, last.end) == (kind, start):
                start = self.segments.pop().start
            self.segments.append(Segment(kind, start, moment))
            self.now = moment

    def program(self, kind: str, shape: Hashable, seconds: float) -> None:
        """A program on the devices, compiled first where its shape is new.

        Args:
            kind: of the program.
            shape: all that tells its compiled forms apart.
            seconds: that it runs.
        """
        if (kind, shape) not in self.known:
            self.known.add((kind, shape))
            self.until('compile', self.now + self.compile_s)
        self.until(kind, self.now + seconds)

    def sleep(self, seconds: float) -> None:
        """Time of a thread, which no engine spends."""
        self.now += seconds


class Later(NamedTuple):
    """The result of a thread's work, with the interface of a future; `at` is when it is there."""

    clock: Clock
    at: float
    value: Any

    def done(self) -> bool:
        """Whether it is there."""
        return self.clock.now >= self.at

    def result(self) -> Any:
        """The result."""
        return self.value

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Threads:
    """A pool of threads: work waits for one that is free, and takes as long as it sleeps."""

    def __init__(self, clock: Clock, size: int):
        self.clock, self.free = clock, [0.0] * size

    def submit(self, work: Callable, *arguments: Any) -> Later:
        """Begins work, as `Executor.submit`."""
        clock, asked = self.clock, self.clock.now
        clock.now = max(asked, heapq.heappop(self.free))
        value = work(*arguments)
        end, clock.now = clock.now, asked
        heapq.heappush(self.free, end)
        return Later(clock, end, value)
