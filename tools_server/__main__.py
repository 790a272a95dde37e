"""Starts the tool server.

    python -m tools_server --config=configs/tools_pocket.yaml            # a free port, printed when ready
    python -m tools_server --config=configs/tools_pocket.yaml --check    # try every back end, then end
    python -m tools_server --config=configs/tools_pocket.yaml --stdio    # MCP on standard input and output

The API's page is under /docs of the address it prints. Exit status: 0 after SIGTERM or Ctrl-C, 1
when the port is in use, the data cannot be used or a checked back end does not work, 2 when the
command line is wrong.
"""

from __future__ import annotations

import os

# Calls run side by side already; libraries that also spread each small operation over all cores
# only get in each other's way: an image search took five times as long on two busy cores. They read
# it when imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import argparse
import asyncio
import gc
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import uvicorn

from tools_server import command
from tools_server.app import create_app
from tools_server.check import check
from tools_server.config import ConfigError, ServerConfig, load_config
from tools_server.connections import limited_protocol, most_connections
from tools_server.launch import READY
from tools_server.logs import Identified, configure
from tools_server.memory import return_large_buffers, trim_while_running
from tools_server.service import ToolService
from tools_server.stopping import DRAIN_S, Draining


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 after a ConfigError, whose sentence it prints."""
    parser = command.parser('tools_server', __doc__)
    parser.add_argument(
        '--config', required=True, type=Path, help='YAML file, see tools_server/config.py'
    )
    parser.add_argument('--port', type=int, help="instead of the config's; 0 takes any free port")
    parser.add_argument('--images', type=Path, help="folder for pictures, instead of the config's")
    parser.add_argument(
        '--parent',
        type=int,
        help='end when the process with this id, which started this one, is gone',
    )
    parser.add_argument(
        '--ready-fd',
        type=int,
        help='open file descriptor that the address is written to once it serves',
    )
    parser.add_argument(
        '--mode', choices=('live', 'record', 'replay', 'offline'), help="instead of the config's"
    )
    parser.add_argument('--answers', type=Path, help="file of answers, instead of the config's")
    parser.add_argument(
        '--check', action='store_true', help='try every back end, say what works, and end'
    )
    parser.add_argument(
        '--stdio', action='store_true', help='serve MCP on standard input and output'
    )
    options = parser.parse_args(arguments)
    try:
        if options.port is not None and not 0 <= options.port <= 65535:
            raise ConfigError(f'--port={options.port} is not a port; ports are 0 to 65535')
        config = load_config(options.config, _changes(options))
        configure(config.log_level)
        if options.check:
            return _check(config)
        if options.stdio:
            return _serve_stdio(config)
        listener = _listen(config.host, config.port)
        return _serve(config, listener, options.parent, options.ready_fd)
    except ConfigError as error:
        print(f'tools_server: {error}', file=sys.stderr)
        return 1


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the config that the command line replaces."""
    changes: dict[str, Any] = {}
    if options.port is not None:
        changes['port'] = options.port
    if options.mode is not None:
        changes['mode'] = options.mode
    if options.images is not None:
        changes['images'] = {'directory': options.images.absolute()}
    if options.answers is not None:
        changes['answers'] = {'path': options.answers.absolute()}
    return changes


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything is loaded, so that a port in use shows at once."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        raise ConfigError(
            f'cannot listen on {host}:{port}: {error.strerror}; choose another --port'
        ) from None
    return listener


def _check(config: ServerConfig) -> int:
    service = ToolService(config)
    try:
        start = time.perf_counter()
        service.load()
        print(f'loaded in {time.perf_counter() - start:.1f} s')
        return check(service, config.deadline_s)
    finally:
        service.close()


def _serve_stdio(config: ServerConfig) -> int:
    try:
        from tools_server.mcp_server import create_mcp
    except ImportError:
        raise ConfigError(
            "--stdio needs the mcp package: pip install 'sensesearch_jax[mcp]'"
        ) from None
    service = ToolService(config)
    try:
        service.load()
        asyncio.run(create_mcp(service, config.deadline_s).run_stdio_async())
    finally:
        service.close()
    return 0


def _serve(
    config: ServerConfig, listener: socket.socket, parent: int | None, ready_fd: int | None
) -> int:
    cv2.setNumThreads(1)
    return_large_buffers()
    trim_while_running()
    if ready_fd is not None:
        # whoever waits at its other end waits for this process alone
        os.set_inheritable(ready_fd, False)
    service = ToolService(config)
    try:
        draining = Draining(create_app(service, config))
    except ImportError:
        raise ConfigError(
            "mcp: true needs the mcp package: pip install 'sensesearch_jax[mcp]'"
        ) from None
    server = _Server(
        draining,
        uvicorn.Config(
            Identified(draining),
            log_config=None,
            log_level='warning',
            timeout_keep_alive=120,
            timeout_graceful_shutdown=DRAIN_S + 1,
            lifespan='on',
            http=limited_protocol(most_connections()),
            ws='none',
        ),
    )
    problems: list[BaseException] = []

    def load() -> None:
        """In a thread of its own: the server answers 'not ready' meanwhile."""
        try:
            service.load()
        except BaseException as error:
            problems.append(error)
            server.should_exit = True
            return
        # What is loaded stays; and a large JSON text must not be searched for garbage while it is
        # being read, which makes its reading take five times as long.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        host = f'[{config.host}]' if ':' in config.host else config.host
        url = f'http://{host}:{listener.getsockname()[1]}'
        print(f'{READY}{url}', flush=True)
        if ready_fd is not None:
            with open(ready_fd, 'w') as ready:
                ready.write(f'{url}\n')

    # uvicorn raises the signal that stopped it again once it is done; these handlers make that a
    # clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, 'should_exit', True))
    threading.Thread(target=load, daemon=True).start()
    if parent is not None:
        threading.Thread(target=_end_with_parent, args=(parent, server), daemon=True).start()
    server.run(sockets=[listener])
    service.close()
    status = 0
    if problems:
        expected = isinstance(problems[0], ConfigError)
        print(
            f'tools_server: {problems[0]}' if expected else f'tools_server failed: {problems[0]!r}',
            file=sys.stderr,
        )
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that still waits for a back end would hold the process until that answers.
    os._exit(status)


class _Server(uvicorn.Server):
    """Gives the calls at work a moment when it is asked to stop, and then answers them itself."""

    def __init__(self, draining: Draining, config: uvicorn.Config):
        super().__init__(config)
        self._draining = draining

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(DRAIN_S, self._draining.stop)
        await super().shutdown(sockets)


def _end_with_parent(parent: int, server: uvicorn.Server) -> None:
    """Stops the server when its parent is gone, also when that was killed and could not say so."""
    while os.getppid() == parent:
        time.sleep(0.5)
    server.should_exit = True


if __name__ == '__main__':
    sys.exit(main())
