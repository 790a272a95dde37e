"""The one error of the tool server: a kind that a trainer acts on and a sentence that a person reads."""

from __future__ import annotations

from typing import Literal

FailureKind = Literal['caller', 'refused', 'timeout', 'unavailable']

# The status a plain HTTP client sees for each kind; a failure may ask for a closer one (404, 413 …).
STATUS: dict[str, int] = {'caller': 400, 'refused': 502, 'timeout': 504, 'unavailable': 503}


class ToolError(Exception):
    """A tool call that gave no result.

    Args:
        kind: 'caller' (the request is wrong and will stay wrong), 'refused' (the back end declined it),
            'timeout' (no answer in time) or 'unavailable' (the back end or the server cannot answer now).
        message: one sentence saying what happened and, where possible, what to do.
        status: HTTP status, by default the one of the kind.
    """

    def __init__(self, kind: FailureKind, message: str, status: int | None = None):
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.status = status or STATUS[kind]
