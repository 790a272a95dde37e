"""The one error of the tool server: a kind that a trainer acts on and a sentence that a person
reads.
"""

from __future__ import annotations

from typing import Literal

FailureKind = Literal['caller', 'refused', 'timeout', 'unavailable']

# The status a plain HTTP client sees for each kind; a failure may ask for a closer one (404, 413,
# 429 …).
STATUS: dict[str, int] = {'caller': 400, 'refused': 502, 'timeout': 504, 'unavailable': 503}


class ToolError(Exception):
    """A tool call that gave no result.

    Args:
        kind: 'caller' (the request is wrong and will stay wrong), 'refused' (the back end declined
            it), 'timeout' (no answer in time) or 'unavailable' (the back end or the server cannot
            answer now).
        message: one sentence saying what happened and, where possible, what to do.
        status: HTTP status, by default the one of the kind.
        retryable: the same request may succeed soon.
        retry_after_s: when to come again, in seconds, where that is known.

    Attributes:
        backend: name of the back end that was asked; None where none was.
        counted: whether it is among the outcomes of a tool's calls.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        status: int | None = None,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.status = status or STATUS[kind]
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.backend: str | None = None
        self.counted = False
