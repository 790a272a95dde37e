"""Calls to services elsewhere: one place that turns everything that can go wrong there into a
failure kind.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

import urllib3

from tools_server.backend_config import Limits
from tools_server.backends.found import each
from tools_server.failures import ToolError
from tools_server.fetching.connections import received, send, timed_out, timed_pools
from tools_server.limits import deadline
from tools_server.limits.json_size import MOST_VALUES, values_in
from tools_server.limits.service import ServiceLimits

MAX_ANSWER_BYTES = 8 * 2**20
MAX_RETRY_AFTER_S = 3600.0
MOST_REASON_CHARS = 200
_HALF = re.compile(rb'\\u[dD][89a-fA-F]')  # of a pair, written in JSON


class Declined(ToolError):
    """A service said no; `answer` is the JSON object it said it with, empty where it sent none."""

    def __init__(self, message: str, answer: dict[str, Any]):
        super().__init__('refused', message)
        self.answer = answer


class Service:
    """An HTTP service that speaks JSON, within its limits. Safe to share between threads.

    Args:
        name: what failures call it.
        base_url: start of its addresses, without a slash at the end.
        timeout_s: longest time one attempt may take, in seconds.
        headers: sent with every call (the keys).
        limits: concurrency, rate, retries, circuit breaker.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        timeout_s: float,
        headers: Mapping[str, str],
        limits: Limits = Limits(),
    ):
        self.name = name
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._headers = {**headers, 'Content-Type': 'application/json'}
        # A service may repeat the key in its reasons; those are shown and logged.
        self._secrets = [
            word for value in headers.values() for word in value.split() if len(word) >= 6
        ]
        self._pools = timed_pools(limits.concurrency)
        self.limits = ServiceLimits(name, limits, timeout_s)

    def post(self, path: str, body: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
        """Sends a JSON object and returns the JSON object that comes back, tried again where that
        may help.

        Args:
            path: behind the service's address.
            body: the object.
            wanted: fields of which an answer has at least one; some services say 200 to everything,
                and give the error in the body.

        Raises:
            ToolError: 'timeout', 'refused' (the service says no: 4xx, or a reason in place of an
                answer) or 'unavailable' (no connection, 5xx, nonsense). The message holds the
                service's own reason.
        """
        data = json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace')
        return self.limits.run(lambda: self._post(path, data, wanted))

    def _post(self, path: str, data: bytes, wanted: Collection[str]) -> dict[str, Any]:
        deadline.require_time(self.name)
        try:
            response = send(self._pools, 'POST', self._base_url + path, data, self._headers)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # at the deadline a timer closes the connection
            if timed_out(error) or deadline.left() <= 0:
                raise self._late() from None
            raise ToolError(
                'unavailable',
                f'{self.name} cannot be reached ({type(error).__name__})',
                retryable=True,
            ) from None
        answer = received(response, MAX_ANSWER_BYTES, self.name)
        return self._read(response, answer, wanted)

    def _read(
        self, response: urllib3.BaseHTTPResponse, data: bytes, wanted: Collection[str]
    ) -> dict[str, Any]:
        status = response.status
        if values_in(data) > MOST_VALUES:
            raise ToolError(
                'unavailable', f'{self.name} sent more than {MOST_VALUES} brackets and commas'
            )
        try:
            # Decoded here: json would let halves of UTF-16 pairs pass, which nothing after this can
            # write.
            answer = json.loads(data.decode('utf-8-sig', 'replace'))
            if _HALF.search(data) is not None:
                answer = _without_halves(answer)
        except (ValueError, RecursionError):
            answer = None
        reason = self._reason(answer)
        if status == 429 or status >= 500:
            raise ToolError(
                'refused' if status == 429 else 'unavailable',
                f'{self.name} {"is rate-limited" if status == 429 else "failed"} with status {status}{reason}',
                retryable=True,
                retry_after_s=retry_after(response.headers.get('Retry-After')),
            )
        if status >= 300:
            known = answer if isinstance(answer, dict) else {}
            raise Declined(f'{self.name} refused the request with status {status}{reason}', known)
        if not isinstance(answer, dict):
            raise ToolError(
                'unavailable',
                f'{self.name} answered with something other than a JSON object',
                retryable=True,
            )
        if not any(name in answer for name in wanted):
            if reason:
                raise Declined(f'{self.name} refused the request{reason}', answer)
            raise ToolError(
                'unavailable',
                f'{self.name} sent an answer without {" or ".join(wanted)}',
                retryable=True,
            )
        return answer

    def _reason(self, answer: Any) -> str:
        """': ' and what the service says about its refusal, on one line, without our key; or ''."""
        text = ''.join(c if c.isprintable() else ' ' for c in _said(answer)[:2_000])
        for secret in self._secrets:
            text = text.replace(secret, '…')
        text = ' '.join(text.split()).rstrip('.')
        return f': {text[:MOST_REASON_CHARS]}' if text else ''

    def _late(self) -> ToolError:
        return ToolError(
            'timeout', f'{self.name} did not answer within {self._timeout_s:g} s', retryable=True
        )


def _said(answer: Any) -> str:
    """Sentence in an error of a usual form: {error: {message}}, {message}, {detail: [{msg}]}."""
    for _ in range(4):  # none is nested deeper
        if isinstance(answer, list) and answer:
            answer = answer[0]
        elif isinstance(answer, dict):
            fields = (
                answer.get(name)
                for name in ('error', 'message', 'msg', 'detail', 'reason', 'errors')
            )
            answer = next((field for field in fields if field), None)
    return answer if isinstance(answer, str) else ''


def _without_halves(value: Any) -> Any:
    """A JSON value in which the halves of UTF-16 pairs that its strings hold are question marks."""
    if isinstance(value, str):
        return value.encode('utf-8', 'replace').decode()
    if isinstance(value, list):
        return [_without_halves(member) for member in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(member) for key, member in value.items()}
    return value


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None for neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def bearer(variable: str | None) -> dict[str, str]:
    """The header with the key that an environment variable holds; none without a variable."""
    return {'Authorization': f'Bearer {os.environ[variable]}'} if variable else {}


# Of an answer of Serper: results of its sorts, and the request, which also an answer without
# results repeats.
SERPER_FIELDS = ('organic', 'answerBox', 'knowledgeGraph', 'searchParameters')


def serper_service(base_url: str, api_key_env: str, timeout_s: float, limits: Limits) -> Service:
    """Serper's search API, https://serper.dev.

    Args:
        base_url: start of its addresses, without a slash at the end.
        api_key_env: environment variable that holds the key.
        timeout_s: longest time of one attempt, in seconds.
        limits: concurrency, rate, retries, circuit breaker.
    """
    return Service('Serper', base_url, timeout_s, {'X-API-KEY': os.environ[api_key_env]}, limits)


def serper_results(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The organic results of an answer of Serper, those left out that are no objects.

    Raises:
        ToolError: 'unavailable'; they are no list, or none is an object.
    """
    results = answer.get('organic') or []
    if not isinstance(results, list):
        raise ToolError('unavailable', 'Serper sent results of an unknown form')
    return each(results, _as_object, 'Serper')


def _as_object(rank: int, result: Any) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise TypeError
    return result
