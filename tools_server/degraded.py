"""What an answer lacks, told by whoever notices it.

As with the deadline, a context variable carries the list: a reader of pages, in a thread of its own, adds to
the answer of the call it works for, without each function on the way passing it on.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

MOST_REASONS = 20  # of one answer

_reasons: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar('degraded', default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """The reasons noted in the block, each once, in the order in which they came."""
    token = _reasons.set([])
    try:
        yield _reasons.get()
    finally:
        _reasons.reset(token)


def note(reason: str) -> None:
    """Says that the current answer is only a part of what it should be; outside of a call it says nothing.

    Args:
        reason: one sentence without a full stop.
    """
    reasons = _reasons.get()
    if reasons is not None and reason not in reasons and len(reasons) < MOST_REASONS:
        reasons.append(reason)
