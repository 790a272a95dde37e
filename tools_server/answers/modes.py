"""Which answers come from disk and which are kept there, in each mode.

| mode    | an answer on disk        | otherwise               | kept on disk             |
|---------|--------------------------|-------------------------|--------------------------|
| live    | taken, if not too old    | the back end is asked   | answers of online ones   |
| record  | taken, if it is a result | the back end is asked   | every answer and failure |
| replay  | taken                    | failure 'unavailable'   | nothing                  |
| offline | taken, however old       | only local back ends    | nothing                  |

Entries are addressed by content: tool, what the back end's answer depends on, and the request.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tools_server.answers.store import AnswerStore, StoreError
from tools_server.failures import ToolError
from tools_server.limits import deadline

T = TypeVar('T')
log = logging.getLogger('tools_server')


class Answers(Generic[T]):
    """The answers of one tool under a mode.

    Args:
        tool: its name.
        identity: what its back end's answers depend on, for the key.
        online: whether the back end is somewhere else.
        mode: see the table above.
        store: the file; None: nothing is kept, and only 'live' and 'offline' make sense.
        write: a result to JSON values.
        read: JSON values back to a result; KeyError, TypeError or ValueError for what is none.
    """

    def __init__(
        self,
        tool: str,
        identity: dict[str, Any],
        online: bool,
        mode: str,
        store: AnswerStore | None,
        write: Callable[[T], Any],
        read: Callable[[Any], T],
    ):
        self._tool = tool
        self._identity = identity
        self._online = online
        self._mode = mode
        self._store = store
        self._write = write
        self._read = read
        self.hits = 0

    def answer(self, request: dict[str, Any], compute: Callable[[], T]) -> tuple[T, bool]:
        """The result of a request and whether it came from disk.

        Raises:
            ToolError: the back end's, now or when it was recorded; 'unavailable' where the mode forbids to
                ask it, or a recording cannot be written.
        """
        key = self.key(request)
        kept = self._kept(key)
        if kept is not None and ('result' in kept or self._mode == 'replay'):
            result = self._result(kept)
            self.hits += 1
            return result, True
        if self._mode == 'replay':
            raise ToolError('unavailable', f'this call of {self._tool} is not in the recording')
        if self._mode == 'offline' and self._online:
            raise ToolError('unavailable', f'offline, and this call of {self._tool} is not in the cache')
        try:
            result = compute()
            if self._mode == 'record':
                deadline.require_time(self._tool)  # the run was told 'timeout', so that is what to record
        except ToolError as error:
            if self._mode == 'record':
                # A result, of an earlier or a later try, is worth more than a failure.
                self._keep(key, {'kind': error.kind, 'message': error.message}, replace=False)
            raise
        if self._mode == 'record' or (self._mode == 'live' and self._online):
            self._keep(key, {'result': self._write(result)}, replace=True)
        return result, False

    def key(self, request: dict[str, Any]) -> str:
        """The content address of a request."""
        content = json.dumps([self._tool, self._identity, request], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _kept(self, key: str) -> dict[str, Any] | None:
        if self._store is None:
            return None
        try:
            data = self._store.get(key)
        except StoreError as error:
            if self._mode == 'replay':
                raise ToolError('unavailable', str(error)) from None
            log.error('%s', error)
            return None
        return None if data is None else json.loads(data)

    def _result(self, kept: dict[str, Any]) -> T:
        if 'result' in kept:
            return self._read(kept['result'])
        raise ToolError(kept['kind'], kept['message'])

    def _keep(self, key: str, value: dict[str, Any], *, replace: bool) -> None:
        if self._store is None:
            return
        try:
            self._store.put(key, json.dumps(value, ensure_ascii=False).encode(), replace=replace)
        except StoreError as error:
            if self._mode == 'record':  # a recording with holes would be found out only when it is replayed
                raise ToolError('unavailable', str(error)) from None
            log.error('%s', error)
