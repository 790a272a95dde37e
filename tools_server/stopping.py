"""The end of the server: calls at work have a moment to finish, and what is left then is answered
with a kind.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools_server.failures import ToolError
from tools_server.middleware import refusal

DRAIN_S = 2.0  # for calls at work when the server is asked to stop
AGAIN_S = 1.0  # after which a caller may find the next server


class Draining:
    """ASGI middleware that can answer every call that is still at work.

    Args:
        app: behind it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app
        self._calls: set[asyncio.Task] = set()
        self._stopped = False

    def stop(self) -> None:
        """Ends all calls, and those to come, as 'unavailable'. To be called from the event loop."""
        self._stopped = True
        for call in list(self._calls):
            call.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection (ASGI)."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        begun = False

        async def noticed(message: Message) -> None:
            nonlocal begun
            begun = begun or message['type'] == 'http.response.start'
            await send(message)

        call = asyncio.current_task()
        self._calls.add(call)
        try:
            if self._stopped:
                call.cancel()
            await self._app(scope, receive, noticed)
        except asyncio.CancelledError:
            if not self._stopped or begun:
                raise
            call.uncancel()
            start = scope.get('state', {}).get('start', time.perf_counter())
            sentence = 'the server is stopping; ask again'
            error = ToolError('unavailable', sentence, retry_after_s=AGAIN_S)
            await refusal(error, start)(scope, receive, send)
        finally:
            self._calls.discard(call)
