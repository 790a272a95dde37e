"""The moment until which a call may take, known to everything that works for it.

It travels in a context variable: a tool's thread and every request to a service elsewhere see the
deadline of the call they work for, without each function on the way passing it on.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import time
from collections.abc import Iterator

from tools_server.failures import ToolError

_ends: contextvars.ContextVar[float] = contextvars.ContextVar('deadline', default=math.inf)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Everything in the block has at most so many seconds, never more than an outer deadline."""
    token = _ends.set(min(_ends.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends.reset(token)


def left() -> float:
    """Seconds until the deadline, possibly negative; infinity without one."""
    return _ends.get() - time.monotonic()


def require_time(name: str) -> float:
    """Seconds until the deadline.

    Args:
        name: what waits, for the message.

    Raises:
        ToolError: 'timeout'; none are left.
    """
    seconds = left()
    if seconds <= 0:
        raise ToolError('timeout', f'{name} had no time left to answer')
    return seconds
