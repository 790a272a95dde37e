"""All limits of one service elsewhere around each call to it: breaker, rate, concurrency, retries.

Retries wait a random time that doubles in range ("full jitter"), so that callers that failed
together do not come back together; they take from a budget that successes fill, so that a service
in trouble does not get a multiple of its load (the retry budget of Finagle).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tools_server.backend_config import Limits
from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.limits.breaker import Breaker
from tools_server.limits.rate import Rate

T = TypeVar('T')


class ServiceLimits:
    """Runs calls to one service within its limits. Safe to share between threads.

    Args:
        name: what failures call the service.
        limits: the numbers.
        attempt_s: longest time of one attempt, in seconds.
    """

    def __init__(self, name: str, limits: Limits, attempt_s: float):
        self._name = name
        self._limits = limits
        self._attempt_s = attempt_s
        self._places = threading.BoundedSemaphore(limits.concurrency)
        self._rate = Rate(limits.per_second, limits.burst)
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_pause_s)
        self._budget = _Budget(limits.retry_share)
        self.retries = 0

    def statistics(self) -> dict[str, int]:
        """Whether the breaker is open (1), how often it opened, and retries so far."""
        return {
            'breaker_open': int(self._breaker.open),
            'breaker_opened': self._breaker.opened,
            'retries': self.retries,
        }

    def run(self, call: Callable[[], T]) -> T:
        """The value of `call`, tried again where that may help and both time and budget allow.

        Raises:
            ToolError: the last attempt's; 'unavailable' while the breaker is open or the rate is
                used up; 'timeout' when the deadline passes first.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                value = self._attempt(call)
            except ToolError as error:
                pause = self._pause(error, attempt)
                if pause is None:
                    raise
                self.retries += 1
                time.sleep(pause)
            else:
                self._budget.earn()
                return value

    def _attempt(self, call: Callable[[], T]) -> T:
        wait = self._breaker.wait_s()
        if wait > 0:
            raise ToolError(
                'unavailable',
                f'{self._name} failed repeatedly and is left alone for {wait:.1f} s',
                retry_after_s=wait,
            )
        longest = deadline.require_time(self._name)
        wait = self._rate.reserve(longest)
        if wait > longest:
            raise ToolError(
                'unavailable', f'the rate limit of {self._name} is used up', 429, retry_after_s=wait
            )
        time.sleep(wait)
        if not self._places.acquire(
            timeout=min(deadline.require_time(self._name), threading.TIMEOUT_MAX)
        ):
            raise ToolError(
                'timeout', f'all connections to {self._name} were busy until the deadline'
            )
        try:
            with deadline.within(self._attempt_s):
                value = call()
        except ToolError as error:
            if error.kind == 'caller' or (error.kind == 'refused' and not error.retryable):
                self._breaker.succeeded()  # it works; it only does not like this request
            else:
                self._breaker.failed()
            raise
        finally:
            self._places.release()
        self._breaker.succeeded()
        return value

    def _pause(self, error: ToolError, attempt: int) -> float | None:
        """Seconds before the next attempt; None if there is to be none."""
        if not error.retryable or attempt >= self._limits.attempts:
            return None
        pause = random.uniform(0, self._limits.retry_pause_s * 2 ** (attempt - 1))
        if error.retry_after_s is not None:
            pause += error.retry_after_s
        if pause >= deadline.left() or not self._budget.spend():
            return None
        return pause


class _Budget:
    """Retries as a share of calls, with a few to begin with."""

    def __init__(self, share: float, reserve: float = 10.0):
        self._share = share
        self._most = reserve
        self._left = reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        with self._lock:
            self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
