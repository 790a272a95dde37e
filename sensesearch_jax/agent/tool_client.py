"""The client of the tool server: every call returns its value or a `ToolFailure`, within a
deadline, and never raises.

Safe to share between threads.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import urllib3

from sensesearch_jax.agent.trajectory import ImageRef
from tools_server.failures import ToolError
from tools_server.fetching.connections import received, send, timed_out, timed_pools
from tools_server.limits import deadline

T = TypeVar('T')

KINDS = ('caller', 'refused', 'timeout', 'unavailable')
RETRY_PAUSE_S = 0.1  # before the first retry after a connection error, in seconds; then doubling
MOST_PAUSE_S = 1.0
# environment variable with the server's bearer token, if it asks for one
TOKEN_VARIABLE = 'TOOLS_SERVER_TOKEN'
MOST_CONNECTIONS = 1024  # kept open
MOST_BYTES = 1 << 30  # of an answer


@dataclass(frozen=True)
class ToolFailure:
    """A call that gave no result.

    `kind`: 'caller' (the request is wrong and will stay wrong: its author may be told), 'refused'
    (the back end declined it), 'timeout' (no answer in time) or 'unavailable' (server or back end
    cannot answer now).
    """

    kind: str
    message: str
    # the server no longer has an image that the call names; sent again, it may succeed
    lost: bool = False


@dataclass(frozen=True)
class Passage:
    """A result of text search, best first; '…' in the text stands where it was cut."""

    title: str
    text: str
    score: float


@dataclass(frozen=True)
class Match:
    """A result of image search, best first."""

    title: str
    thumbnail: ImageRef
    score: float


class ToolClient:
    """Calls a tool server.

    Args:
      url: the server's address, such as 'http://127.0.0.1:8000'.
      deadline_s: longest time a call may take, its retries included, in seconds.
      token: the server's bearer token; None takes it from TOOLS_SERVER_TOKEN in the environment, if
        it is there.
    """

    def __init__(self, url: str, deadline_s: float = 10.0, token: str | None = None):
        self.url = url.rstrip('/')
        self.deadline_s = deadline_s
        token = os.environ.get(TOKEN_VARIABLE, '').strip() if token is None else token
        self._headers = {'Authorization': f'Bearer {token}'} if token else {}
        self._pools = timed_pools(MOST_CONNECTIONS)
        self._reached = False  # the server has answered once, to any thread

    def upload(self, image: str | Path | bytes) -> ImageRef | ToolFailure:
        """Hands an image file (its path or bytes) to the server; from then on its hash names it."""
        if not isinstance(image, bytes):
            try:
                image = Path(image).read_bytes()
            except OSError as error:
                return ToolFailure(
                    'caller', f'cannot read the image file {image}: {error.strerror}'
                )
        return self._call('POST', '/images', _image_ref, data=image)

    def image(self, sha256: str) -> bytes | ToolFailure:
        """The image file (JPEG or PNG, upright, RGB) of a hash."""
        return self._call('GET', f'/images/{sha256}', None)

    def text_search(self, query: str, top_k: int = 5) -> list[Passage] | ToolFailure:
        """At most `top_k` passages for a query of any wording; possibly none."""
        return self._call('POST', '/text_search', _passages, body={'query': query, 'top_k': top_k})

    def image_search(self, sha256: str, top_k: int = 5) -> list[Match] | ToolFailure:
        """At most `top_k` known pictures that look like an image or something large in it."""
        return self._call('POST', '/image_search', _matches, body={'image': sha256, 'top_k': top_k})

    def crop(self, sha256: str, bbox: Sequence[float]) -> ImageRef | ToolFailure:
        """Cuts [x0, y0, x1, y1], fractions of an image, out of its full-resolution pixels."""
        return self._call(
            'POST',
            '/crop',
            _image_ref,
            body={'image': sha256, 'bbox': [float(value) for value in bbox]},
        )

    def judge(
        self,
        question: str,
        references: Sequence[str],
        response: str,
        images: Sequence[str] = (),
        choices: Sequence[str] = (),
    ) -> bool | ToolFailure:
        """Whether a response answers the question as one of the references does.

        Args:
            question: its text, without the options.
            references: accepted answers; with `choices` they name theirs by letter or text.
            response: the answer to judge.
            images: hashes of the question's images on the server; none: the judge sees none.
            choices: options A, B, … in order; empty for a free answer.

        Returns:
            The verdict, or why there is none.
        """
        body = {
            'question': question,
            'references': list(references),
            'response': response,
            'images': list(images),
        }
        if choices:
            body['choices'] = list(choices)
        return self._call('POST', '/judge', _verdict, body=body)

    def health(self) -> dict[str, Any] | ToolFailure:
        """`ready`, `mode`, `backends` per tool and `cache` counts per tool."""
        return self._call('GET', '/health', lambda answer: dict(answer))

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T] | None,
        body: dict | None = None,
        data: bytes | None = None,
    ) -> T | bytes | ToolFailure:
        """One request, tried again while the server is away, starting, stopping or too busy to take
        it, as long as the deadline allows: every request of the server may be repeated.

        `read` turns the JSON answer into the value; None returns the bytes as they are.
        """
        headers = dict(self._headers)
        if data is not None:
            headers['Content-Type'] = 'application/octet-stream'
        if body is not None:
            try:
                # A lone surrogate, which JSON can express and models do write, is no character: the
                # server replaces it.
                data = json.dumps(body, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                return ToolFailure('caller', f'the request cannot be written as JSON: {error}')
            headers['Content-Type'] = 'application/json'
        with deadline.within(self.deadline_s):
            try:
                status, answer = self._patiently(method, self.url + path, data, headers)
            except (ToolError, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                if _too_late(error):
                    return ToolFailure('timeout', f'no answer within {self.deadline_s:g} s')
                return ToolFailure(
                    'unavailable', f'the tool server cannot be reached ({type(error).__name__})'
                )
        try:
            if status == 200 and read is None:
                return answer
            content = json.loads(answer)
            if status == 200:
                return read(content)
            if status == 404:  # only images are named: one that was uploaded or made here is gone
                return ToolFailure('unavailable', str(content['message']), lost=True)
            if content['kind'] in KINDS:
                return ToolFailure(content['kind'], str(content['message']))
        except (ValueError, TypeError, KeyError):
            pass
        return ToolFailure(
            'unavailable', f'the tool server sent something unexpected, with status {status}'
        )

    def _patiently(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a request, which is sent again while nobody listens at an
        address that has answered before, once when a connection broke, and when the server says to
        come again later and there is time for that.
        """
        pause_s, broken = RETRY_PAUSE_S, 0
        while True:
            # Nobody works on for a caller that has gone.
            left = deadline.require_time('the tool server')
            try:
                response = send(
                    self._pools, method, url, data, headers | {'X-Deadline-S': f'{left:.3f}'}
                )
                answer = received(response, MOST_BYTES, 'the tool server')
            except (ToolError, urllib3.exceptions.HTTPError, OSError) as error:
                # A broken connection may have been idle for too long; one that breaks again is the
                # server's way.
                nobody = isinstance(error, urllib3.exceptions.NewConnectionError)
                broken += not nobody
                hopeless = (nobody and not self._reached) or _too_late(error)
                if broken > 1 or hopeless or deadline.left() < pause_s:
                    raise
                time.sleep(pause_s)  # it may be starting again, and then soon takes the connection
                pause_s = min(2 * pause_s, MOST_PAUSE_S)
                continue
            self._reached = True
            status, again_s = response.status, _retry_after(response)
            # The members of a group are sent away together; they should not come back together.
            pause = None if again_s is None else again_s * random.uniform(0.5, 1.5) + RETRY_PAUSE_S
            away = status == 429 or (status == 503 and _says_so_itself(answer))
            if not away or pause is None or pause >= deadline.left():
                return status, answer
            time.sleep(pause)


def _too_late(error: Exception) -> bool:
    """Whether the time is over; where nobody listens, that is not the reason."""
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return False
    late = error.kind == 'timeout' if isinstance(error, ToolError) else timed_out(error)
    return late or deadline.left() <= 0


def _says_so_itself(answer: bytes) -> bool:
    """Whether a failure is the server's own, which starts or stops, and not its services'."""
    try:
        return json.loads(answer).get('backend') is None
    except (ValueError, AttributeError):
        return False


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    value = response.headers.get('Retry-After', '')
    return float(value) if value.isdigit() and len(value) < 6 else None


def _image_ref(answer: dict[str, Any]) -> ImageRef:
    return ImageRef(str(answer['sha256']), int(answer['width']), int(answer['height']))


def _passages(answer: dict[str, Any]) -> list[Passage]:
    return [Passage(str(r['title']), str(r['text']), float(r['score'])) for r in answer['results']]


def _matches(answer: dict[str, Any]) -> list[Match]:
    return [
        Match(str(r['title']), _image_ref(r['thumbnail']), float(r['score']))
        for r in answer['results']
    ]


def _verdict(answer: dict[str, Any]) -> bool:
    if not isinstance(answer['verdict'], bool):
        raise TypeError('a verdict is true or false')
    return answer['verdict']
