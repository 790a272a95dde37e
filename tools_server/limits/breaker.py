"""A circuit breaker: a service that keeps failing is left alone for a while, and its callers told
at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Opens after a run of failures, lets one call through after a pause, closes when that
    succeeds.

    Safe to share between threads.

    Args:
        failures: failures in a row that open it.
        pause_s: how long it stays open before one call may try, in seconds.
        clock: seconds, monotonic.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic):
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opens_again = 0.0  # when the next call may try, while open
        self.opened = 0  # times it opened

    @property
    def open(self) -> bool:
        """Whether calls are held back now."""
        return self._failures >= self._limit

    def wait_s(self) -> float:
        """0 if a call may be made now, the trial of an open breaker; else seconds to wait."""
        with self._lock:
            if not self.open:
                return 0.0
            wait = self._opens_again - self._clock()
            if wait > 0:
                return wait
            self._opens_again = self._clock() + self._pause_s  # one trial, the others go on waiting
            return 0.0

    def succeeded(self) -> None:
        """A call worked: the run of failures is over."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """A call failed: opens at the limit, and for another pause if it was open."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self.opened += self._failures == self._limit
                self._opens_again = self._clock() + self._pause_s
