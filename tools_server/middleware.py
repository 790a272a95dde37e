"""Middleware before every request: the token, Host and Origin, limits of the body's size and time,
the clock.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools_server.config import LOOPBACK, ServerConfig
from tools_server.failures import ToolError
from tools_server.limits.bodies import SMALL_BYTES, BodyRoom
from tools_server.limits.json_size import MOST_VALUES, values_in
from tools_server.schemas import Failure
from tools_server.signatures import is_signed

OPEN = ('/live', '/ready')  # for whoever watches over the process; they say nothing about calls
DOCS_FILES = '/docs-files'  # scripts and styles of the API's page
# a browser opens it without a token, and its user gives one there
DOCS = ('/docs', '/openapi.json')
MAX_JSON_BYTES = 8 * 2**20
JSON_BYTES = 8 * MAX_JSON_BYTES  # of all larger JSON bodies that are in memory at the same time
JSON_S = 10.0  # longest time in which a JSON body must be here
# of a body so much must come in so many seconds; who stops gives its room to others
PIECE_S, PIECE_BYTES = (5.0, 65_536)
STALL_S = 1.0  # and while others wait for its room, a body may stop for no longer than this
DEADLINE = 'X-Deadline-S'  # header: seconds after which the caller will have gone


class GuardMiddleware:
    """ASGI middleware.

    A body is read only when there is room for it, and must arrive by the call's deadline; the room
    is taken until the answer is sent. Pictures and other bodies have room of their own.

    Args:
        app: behind it.
        config: the token that callers must send as `Authorization: Bearer …` (without one everyone
            on this machine may call), the deadline, and the limits of uploads.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._token = config.token()
        self._deadline_s = config.deadline_s
        largest = config.images.max_bytes
        self._limits = {'/images': largest, '/mcp': 2 * largest}  # there images come as base64
        uploads = BodyRoom(max(config.images.upload_bytes, largest), config.queue)
        self._rooms = {'/images': uploads, '/mcp': uploads}
        self._room = BodyRoom(JSON_BYTES, config.queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection (ASGI)."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        scope.setdefault('state', {})['start'] = start
        connection = HTTPConnection(scope)
        problem = self._problem(connection)
        limit = self._limits.get(scope['path'], MAX_JSON_BYTES)
        length = connection.headers.get('content-length', '')
        size = (
            int(length)
            if length.isdigit()
            else limit
            if 'transfer-encoding' in connection.headers
            else 0
        )
        if problem is None and size > limit:
            problem = ToolError('caller', f'the body has more than the allowed {limit} bytes', 413)
        if problem is not None:
            await refusal(problem, start)(scope, receive, send)
            return
        seconds = (
            self._deadline_s if scope['path'] in self._rooms else min(JSON_S, self._deadline_s)
        )
        ends = asyncio.get_running_loop().time() + min(seconds, _asked_s(connection))
        rooms = self._rooms.get(scope['path'], self._room)
        room = rooms.take(size)
        try:
            async with asyncio.timeout_at(ends):
                await room.__aenter__()
        except TimeoutError:
            problem = ToolError('timeout', 'there was no room for the body in time')
        except ToolError as error:
            problem = error
        if problem is not None:
            await refusal(problem, start)(scope, receive, send)
            return
        # A small body takes no room, so it holds up nobody.
        wanted = None if size <= SMALL_BYTES else rooms
        limited = _limited(receive, limit, ends, scope['path'] == '/images', wanted)
        try:
            await self._app(scope, limited, send)
        finally:
            await room.__aexit__(None, None, None)

    def _problem(self, connection: HTTPConnection) -> ToolError | None:
        """The failure of a request that may not pass.

        Who may not call has made no mistake in the call: to a trainer it is its infrastructure that
        fails.
        """
        # what is routed; `connection.url` is made of the Host header too
        path = connection.scope['path']
        if self._token is None:
            # A web page whose name is made to resolve to this machine would come with its own name
            # here.
            host = connection.headers.get('host', '')
            name = host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]
            if name not in LOOPBACK:
                return ToolError('refused', f'the host {name[:80]!r} is not this machine', 403)
            # A page of another site in a browser of this machine: it may send a picture without
            # being asked.
            origin = connection.headers.get('origin')
            if origin is not None and origin.partition('://')[2] != host:
                return ToolError(
                    'refused', f'pages of {origin[:80]!r} may not call this server', 403
                )
            return None
        if path in OPEN or path in DOCS or path.startswith(f'{DOCS_FILES}/'):
            return None
        scheme, _, sent = connection.headers.get('authorization', '').partition(' ')
        if scheme.lower() == 'bearer' and hmac.compare_digest(
            sent.strip().encode(), self._token.encode()
        ):
            return None
        signature = connection.query_params.get('signature', '')
        if path.startswith('/images/') and is_signed(
            path.removeprefix('/images/'), signature, self._token
        ):
            return None
        sentence = 'the bearer token is missing or wrong; send it as "Authorization: Bearer TOKEN"'
        return ToolError('refused', sentence, 401)


def _asked_s(connection: HTTPConnection) -> float:
    """The caller's deadline in seconds; infinity without one or where it is no number."""
    try:
        seconds = float(connection.headers.get(DEADLINE, 'inf'))
    except ValueError:
        return math.inf
    return math.inf if math.isnan(seconds) else seconds


def _limited(
    receive: Receive, limit: int, ends: float, is_picture: bool, room: BodyRoom | None
) -> Callable:
    """`receive` within limits of size and time.

    A body whose declared length is missing or false ends at the limit; one that comes too slowly,
    or not until `ends`, ends then; one that has stopped ends when others wait for its room.

    Args:
        receive: of the request.
        limit: most bytes of the body.
        ends: the event loop's time by which the body must be here.
        is_picture: its brackets and commas are not counted.
        room: holds the body's place; None where it has none.
    """
    loop = asyncio.get_running_loop()
    now = loop.time
    seen, values, piece, piece_ends, whole = 0, 0, 0, now() + PIECE_S, False

    async def limited() -> Message:
        nonlocal seen, values, piece, piece_ends, whole
        if whole:  # what is still to come is the end of the connection
            return await receive()
        stalled: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal stalled
            if room.crowded:
                time_limit.reschedule(now())
            else:
                stalled = loop.call_later(STALL_S, look)

        try:
            async with asyncio.timeout_at(min(ends, piece_ends)) as time_limit:
                if room is not None:
                    stalled = loop.call_later(STALL_S, look)
                message = await receive()
        except TimeoutError:
            raise HTTPException(504, 'the body did not arrive in time') from None
        finally:
            if stalled is not None:
                stalled.cancel()
        size = len(message.get('body', b''))
        values += 0 if is_picture else values_in(message.get('body', b''))
        seen, piece = seen + size, piece + size
        if piece >= PIECE_BYTES:
            piece, piece_ends = 0, now() + PIECE_S
        whole = not message.get('more_body', False)
        if values > MOST_VALUES:
            raise HTTPException(
                413, f'the body has more than the allowed {MOST_VALUES} brackets and commas'
            )
        if seen > limit:
            raise HTTPException(413, f'the body has more than the allowed {limit} bytes')
        return message

    return limited


def failure_answer(error: ToolError, latency_s: float) -> JSONResponse:
    """The answer to a call that gave no result.

    Args:
        error: why.
        latency_s: seconds since the call came in.
    """
    failure = Failure(
        kind=error.kind,
        message=error.message,
        backend=error.backend,
        latency_s=latency_s,
        retry_after_s=error.retry_after_s,
    )
    headers = {}
    if error.retry_after_s is not None:  # the header knows whole seconds only
        headers['Retry-After'] = str(math.ceil(error.retry_after_s))
    return JSONResponse(failure.model_dump(), error.status, headers)


def refusal(error: ToolError, start: float) -> JSONResponse:
    """The answer to a request that is not worked on, after which the connection ends.

    Args:
        error: why.
        start: when the request came in, by `time.perf_counter`.
    """
    answer = failure_answer(error, round(time.perf_counter() - start, 6))
    answer.headers['Connection'] = 'close'  # the rest of the body is not read
    if error.status == 401:
        answer.headers['WWW-Authenticate'] = 'Bearer'
    return answer
