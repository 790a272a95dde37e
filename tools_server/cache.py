"""A bounded in-memory cache that computes each value once, however many ask for it at the same
time.

The samples of a group ask the same things: of G identical requests one does the work, the others
wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar('T')


class Cache:
    """Least-recently-used cache with a limit on the summed weight of its values. Safe to share
    between threads.

    Args:
        limit: greatest total weight kept (entries by default, bytes where `weigh` returns bytes).
        weigh: weight of a value; 1 for each by default.
    """

    def __init__(self, limit: int, weigh: Callable[[Any], int] = lambda value: 1):
        self._limit = limit
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._pending: dict[Hashable, Future] = {}
        self._weight = 0
        self.hits = 0
        self.misses = 0

    def get_or_compute(
        self, key: Hashable, compute: Callable[[], T], holds: Callable[[T], bool] | None = None
    ) -> tuple[T, bool]:
        """The value under a key, computed where it is not kept.

        An exception of `compute` reaches every caller that waited for it and is not kept.

        Args:
            key: of the value.
            compute: makes the value.
            holds: whether a kept value is still right; one that is not is computed anew.

        Returns:
            The value, and whether it was known, which it also was to a caller that waited for
            another's computation.
        """
        if holds is not None and (kept := self.peek(key)) is not None and not holds(kept):
            self.drop(key)
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                self.hits += 1
                return self._values[key], True
            future = self._pending.get(key)
            owner = future is None
            if owner:
                future = self._pending[key] = Future()
                self.misses += 1
            else:
                self.hits += 1
        if not owner:
            try:
                return future.result(), True
            finally:
                del future  # see below
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            # The error holds this frame; did the frame hold the error, all that `compute` had read
            # would wait for the garbage collector.
            del future
            raise
        with self._lock:
            del self._pending[key]
            self._insert(key, value)
        future.set_result(value)
        return value, False

    def get(self, key: Hashable) -> Any | None:
        """A value that is kept; None without one. Counts as a hit or a miss."""
        with self._lock:
            if key not in self._values:
                self.misses += 1
                return None
            self._values.move_to_end(key)
            self.hits += 1
            return self._values[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value that was made elsewhere."""
        with self._lock:
            self._insert(key, value)

    def peek(self, key: Hashable) -> Any | None:
        """A value that is kept; None without one. Counts as nothing."""
        with self._lock:
            return self._values.get(key)

    def drop(self, key: Hashable) -> None:
        """Forgets a value, if it is kept."""
        with self._lock:
            if key in self._values:
                self._weight -= self._weigh(self._values.pop(key))

    def _insert(self, key: Hashable, value: Any) -> None:
        if key in self._values:
            self._weight -= self._weigh(self._values.pop(key))
        weight = self._weigh(value)
        if weight > self._limit:
            return
        self._values[key] = value
        self._weight += weight
        while self._weight > self._limit:
            _, oldest = self._values.popitem(last=False)
            self._weight -= self._weigh(oldest)

    def statistics(self) -> dict[str, int]:
        """Entries kept, and how often a value was there or had to be computed."""
        return {'entries': len(self._values), 'hits': self.hits, 'misses': self.misses}
