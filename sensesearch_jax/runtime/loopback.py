"""Web applications for a browser on this machine alone."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sensesearch_jax.errors import UserError

LOOPBACK = '127.0.0.1'
# Only this machine's browser, also through a forwarded port, and no page of another site.
HOSTS = [LOOPBACK, 'localhost']


def new_app(title: str) -> FastAPI:
    """An application without routes, which answers nothing but this machine's own pages."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return app


def listen(port: int, field: str) -> socket.socket:
    """A listening socket of the loopback address, so that who reads its address may call it.

    Args:
        port: 0 takes a free one.
        field: option or config field that the port comes from.

    Raises:
        UserError: the port cannot be used.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f'{field} {port} cannot be used: {error}; choose another one.') from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    return f'http://{LOOPBACK}:{listener.getsockname()[1]}'


def serve(app: FastAPI, listener: socket.socket, announcement: str) -> None:
    """Serves an application until Ctrl-C.

    Args:
        app: the application.
        listener: from `listen`.
        announcement: that is printed before.
    """
    try:
        print(announcement, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level='warning')).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again when all is closed
        pass
