"""What stands before every request: the token, the Host header, a size limit, and the clock."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools_server.config import LOOPBACK
from tools_server.schemas import Failure
from tools_server.signatures import is_signed

OPEN = ('/live', '/ready')  # for whoever watches over the process; they say nothing about calls
DOCS_FILES = '/docs-files'  # scripts and styles of the API's page
DOCS = ('/docs', '/openapi.json')  # a browser opens it without a token, and its user gives one there
MAX_JSON_BYTES = 8 * 2**20


class Gate:
    """ASGI middleware.

    Args:
        app: behind it.
        token: that callers must send as `Authorization: Bearer …`; None: everyone on this machine may call.
        max_upload: largest body of POST /images, in bytes; other bodies have a limit of their own.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_upload: int):
        self._app = app
        self._token = token
        self._limits = {'/images': max_upload, '/mcp': 2 * max_upload}  # there images come as base64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        scope.setdefault('state', {})['start'] = start
        connection = HTTPConnection(scope)
        problem = self._problem(connection)
        limit = self._limits.get(scope['path'], MAX_JSON_BYTES)
        length = connection.headers.get('content-length', '0')
        if problem is None and length.isdigit() and int(length) > limit:
            problem = 413, f'the body has more than the allowed {limit} bytes'
        if problem is not None:
            await _refuse(*problem, start)(scope, receive, send)
            return
        await self._app(scope, _limited(receive, limit), send)

    def _problem(self, connection: HTTPConnection) -> tuple[int, str] | None:
        """Status and sentence for a request that may not pass."""
        path = connection.scope['path']  # what is routed; `connection.url` is made of the Host header too
        if self._token is None:
            # A web page whose name is made to resolve to this machine would come with its own name here.
            host = connection.headers.get('host', '')
            name = host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]
            return None if name in LOOPBACK else (403, f'the host {name[:80]!r} is not this machine')
        if path in OPEN or path in DOCS or path.startswith(f'{DOCS_FILES}/'):
            return None
        scheme, _, sent = connection.headers.get('authorization', '').partition(' ')
        if scheme.lower() == 'bearer' and hmac.compare_digest(sent.strip().encode(), self._token.encode()):
            return None
        signature = connection.query_params.get('signature', '')
        if path.startswith('/images/') and is_signed(path.removeprefix('/images/'), signature, self._token):
            return None
        return 401, 'the bearer token is missing or wrong; send it as "Authorization: Bearer TOKEN"'


def _limited(receive: Receive, limit: int) -> Callable:
    """`receive`, for bodies of a length that was not declared or not true."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get('body', b''))
        if seen > limit:
            raise HTTPException(413, f'the body has more than the allowed {limit} bytes')
        return message

    return limited


def _refuse(status: int, sentence: str, start: float) -> JSONResponse:
    latency = round(time.perf_counter() - start, 6)
    # Who may not call has made no mistake in the call: to a trainer it is its infrastructure that fails.
    kind = 'refused' if status in (401, 403) else 'caller'
    failure = Failure(kind=kind, message=sentence, backend=None, latency_s=latency)
    headers = {'Connection': 'close'}  # the rest of the body is not read
    if status == 401:
        headers['WWW-Authenticate'] = 'Bearer'
    return JSONResponse(json.loads(failure.model_dump_json()), status, headers)
