"""Notes of shortcomings of an answer, taken by whoever notices them.

As with the deadline, a context variable carries the list: a reader of pages, in a thread of its
own, adds to the answer of the call it works for, without each function on the way passing it on.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_REASONS = 20  # of one answer


@dataclass
class Notes:
    """Shortcomings of one answer.

    Attributes:
        reasons: each once, in the order in which they came.
        passing: whether another try may find more.
    """

    reasons: list[str] = field(default_factory=list)
    passing: bool = False


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar('degraded', default=None)


@contextlib.contextmanager
def collected() -> Iterator[Notes]:
    """The notes that are taken in the block."""
    token = _notes.set(notes := Notes())
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(reason: str, *, lasting: bool = False) -> None:
    """Says that the current answer is only a part of what it should be; outside of a call it says
    nothing.

    Args:
        reason: one sentence without a full stop.
        lasting: tomorrow it will be the same, so that the answer may be kept as if it were whole.
    """
    notes = _notes.get()
    if notes is None:
        return
    notes.passing = notes.passing or not lasting
    if reason not in notes.reasons and len(notes.reasons) < MOST_REASONS:
        notes.reasons.append(reason)
