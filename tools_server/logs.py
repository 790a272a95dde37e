"""Structured logs: one JSON object a line, with time, level and the id of the request that it is
about.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import re
import secrets
import sys

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = 'X-Request-Id'  # header: taken from the caller where it is a plain word, and sent back
_WORD = re.compile(r'[A-Za-z0-9._-]{1,64}')

_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar('request_id', default=None)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `extra={'fields': {...}}` of a call becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            'time': moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z'),
            'level': record.levelname.lower(),
            'logger': record.name,
            'message': record.getMessage(),
        }
        if (request_id := _request_id.get()) is not None:
            line['request_id'] = request_id
        line |= getattr(record, 'fields', {})
        if record.exc_info:
            line['exception'] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Sends the process's logs to standard error as lines of JSON, this program's from a level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger('tools_server').setLevel(level.upper())


class Identified:
    """ASGI middleware that gives each request an id, for its lines of the log and for its answer.

    Args:
        app: behind it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection (ASGI)."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID, '')
        name = sent if _WORD.fullmatch(sent) else secrets.token_hex(8)
        _request_id.set(name)  # each request is a task with a context of its own

        async def named(message: Message) -> None:
            if message['type'] == 'http.response.start':
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        await self._app(scope, receive, named)
