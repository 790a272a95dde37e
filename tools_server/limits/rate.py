"""A token bucket: so many calls a second on average, with short bursts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Rate:
    """Hands out turns at a bounded rate. Safe to share between threads.

    Args:
        per_second: turns a second on average; None: no limit.
        burst: turns that may follow each other at once after a pause.
        clock: seconds, monotonic.
    """

    def __init__(
        self, per_second: float | None, burst: int = 1, clock: Callable[[], float] = time.monotonic
    ):
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._filled = clock()

    def reserve(self, longest_s: float) -> float:
        """Takes a turn that comes within `longest_s` seconds; returns the seconds to wait for it.

        A turn further away is not taken: then the returned wait is longer than `longest_s`.
        """
        if self._per_second is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._per_second)
            self._filled = now
            wait = max(0.0, (1 - self._tokens) / self._per_second)
            if wait <= longest_s:
                self._tokens -= 1  # below zero: turns promised to callers that still wait
            return wait
