"""Modes of the server: in each, which answers come from disk and which are kept there.

| mode    | an answer on disk        | otherwise               | kept on disk             |
|---------|--------------------------|-------------------------|--------------------------|
| live    | taken, if not too old    | the back end is asked   | answers of online ones   |
| record  | taken, if it is a result | the back end is asked   | every answer and failure |
| replay  | taken                    | failure 'unavailable'   | nothing                  |
| offline | taken, however old       | only local back ends    | nothing                  |

Entries are addressed by content: tool, what the back end's answer depends on, and the request. An
answer that lacks something, or holds nothing, is taken for a short while only: a service that fails
today is not believed for a month. A recording asks anew for what lacked something, and keeps the
better answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tools_server import degraded
from tools_server.config import AnswerConfig
from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.response_cache.reader import SKEW_S, Entry, StoreError

T = TypeVar('T')
log = logging.getLogger('tools_server')


class Store(Protocol):
    """Place where answers are kept: an `AnswerStore`, a `Reader`, or `WriteBehind` before a cache."""

    def entry(self, key: str) -> Entry | None:
        """The entry under a key; None without one."""

    def put(self, key: str, value: bytes, *, replace: bool = True) -> None:
        """Keeps a value.

        Args:
            key: any text.
            value: its bytes.
            replace: whether it takes the place of a value that is there already.
        """


@dataclass(frozen=True)
class Answered(Generic[T]):
    """A result and what is to be said with it.

    Attributes:
        value: the result.
        degraded: what it lacks.
        from_disk: whether it was kept.
        lasts_s: seconds for which it holds from now on; None: for ever.
    """

    value: T
    degraded: tuple[str, ...]
    from_disk: bool
    lasts_s: float | None


@dataclass(eq=False)
class Answers(Generic[T]):
    """The answers of one tool under a mode.

    Args:
        tool: its name.
        identity: what its back end's answers depend on, for the key.
        online: whether the back end is somewhere else.
        mode: see the table above.
        ages: for how long answers of each sort hold.
        store: the file; None: nothing is kept, and only 'live' and 'offline' make sense.
        write: a result to JSON values.
        read: JSON values back to a result; KeyError, TypeError or ValueError for what is none.
    """

    tool: str
    identity: dict[str, Any]
    online: bool
    mode: str
    ages: AnswerConfig
    store: Store | None
    write: Callable[[T], Any]
    read: Callable[[Any], T]
    hits: int = 0

    def answer(self, request: dict[str, Any], compute: Callable[[], T]) -> Answered[T]:
        """The result of a request, from disk or from `compute`.

        Raises:
            ToolError: the back end's, now or when it was recorded; 'unavailable' where the mode
                forbids to ask it, or a recording cannot be written.
        """
        key = self.key(request)
        kept = self._kept(key)
        if kept is not None:
            self.hits += 1
            return kept
        if self.mode == 'replay':
            raise ToolError('unavailable', f'this call of {self.tool} is not in the recording')
        if self.mode == 'offline' and self.online:
            raise ToolError(
                'unavailable', f'offline, and this call of {self.tool} is not in the cache'
            )
        try:
            with degraded.collected() as noted:
                result = compute()
                # A reader of pages that is late may note something even now.
                reasons, passing = tuple(noted.reasons), noted.passing
            if self.mode == 'record':
                # the run was told 'timeout', so that is what to record
                deadline.require_time(self.tool)
        except ToolError as error:
            if self.mode == 'record':
                # A result, of an earlier or a later try, is worth more than a failure.
                self._keep(key, {'kind': error.kind, 'message': error.message}, replace=False)
            raise
        lasts_s = self._lasts_s(result, passing)
        if self.mode == 'record' or (self.mode == 'live' and self.online):
            value = {'result': self.write(result), 'degraded': reasons, 'lasts_s': lasts_s}
            self._keep(key, value, replace=True)
        return Answered(result, reasons, False, lasts_s)

    def _lasts_s(self, result: T, passing: bool) -> float | None:
        if passing:
            return self.ages.partial_age_s
        if self.mode != 'live' or not self.online:
            return None
        return self.ages.empty_age_s if result == [] else self.ages.max_age_s

    def key(self, request: dict[str, Any]) -> str:
        """The content address of a request."""
        content = json.dumps([self.tool, self.identity, request], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _kept(self, key: str) -> Answered[T] | None:
        if self.store is None:
            return None
        try:
            entry = self.store.entry(key)
        except StoreError as error:
            if self.mode == 'replay':
                raise ToolError('unavailable', str(error)) from None
            log.error('%s', error)
            return None
        if entry is None:
            return None
        kept = json.loads(entry.value)
        if 'result' not in kept:  # a failure
            if self.mode == 'replay':
                self.hits += 1
                raise ToolError(kept['kind'], kept['message'])
            return None
        lasts_s = kept.get('lasts_s')  # files of earlier versions do not say
        if self.mode in ('replay', 'offline') or lasts_s is None:
            lasts_s = None
        elif (lasts_s := lasts_s - entry.age_s) <= 0 or entry.age_s < -SKEW_S:
            return None
        return Answered(self.read(kept['result']), tuple(kept.get('degraded', ())), True, lasts_s)

    def _keep(self, key: str, value: dict[str, Any], *, replace: bool) -> None:
        if self.store is None:
            return
        try:
            self.store.put(key, json.dumps(value, ensure_ascii=False).encode(), replace=replace)
        except StoreError as error:
            # a recording with holes would be found out only when it is replayed
            if self.mode == 'record':
                raise ToolError('unavailable', str(error)) from None
            log.error('%s', error)
