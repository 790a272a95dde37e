"""Starts the tool server as a process of its own on this machine, and ends it."""

from __future__ import annotations

import io
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

READY = 'tools_server ready at '  # starts the line that says so to a reader; the address follows

# Fields that hold a path, by section.
PATHS = (('text_search', 'passages'), ('text_search', 'index'), ('image_search', 'gallery'),
         ('image_search', 'index'), ('images', 'directory'), ('answers', 'path'))  # fmt: skip


class ToolServerError(RuntimeError):
    """The server did not start; the message says why, in its own words."""


class ToolServer:
    """A running tool server.

        with ToolServer.start('configs/tools_pocket.yaml', workdir) as server:
            client = ToolClient(server.url)

    Attributes:
        url: its address.
        log_path: where its output goes.
        process: the process.
    """

    def __init__(self, process: subprocess.Popen, url: str, log_path: Path):
        self.process = process
        self.url = url
        self.log_path = log_path

    @classmethod
    def start(
        cls,
        config: str | Path | Mapping[str, Any],
        workdir: str | Path,
        *,
        port: int = 0,
        mode: str | None = None,
        answers: str | Path | None = None,
        ready_timeout_s: float = 120.0,
    ) -> ToolServer:
        """Starts a server and waits until it is ready.

        It ends with `close`, at the end of the `with` block, and when the calling process dies in
        whatever way.

        Args:
            config: a YAML file, or its fields (then relative paths start from the current folder).
            workdir: folder for its log (one of each start, tools_server-TIME-HOST-….log) and its
                pictures (images/), which a later start finds again. Several servers, of several
                hosts too, may share it.
            port: 0 takes any free one.
            mode: 'live', 'record', 'replay' or 'offline', instead of the config's.
            answers: the file of answers (of modes 'record' and 'replay' the recording), instead of
                the config's.
            ready_timeout_s: longest time to load, in seconds.

        Raises:
            ToolServerError: it ended instead, or was not ready in time.
        """
        workdir = Path(workdir)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            log, log_path = _own_log(workdir)
        except OSError as error:
            raise ToolServerError(
                f'the folder {workdir} of the tool server cannot be used: {error.strerror}; choose another workdir'
            ) from None
        if isinstance(config, Mapping):
            path = log_path.with_suffix('.yaml')
            path.write_text(yaml.safe_dump(_absolute(dict(config))), encoding='utf-8')
            config = path
        # The address comes through a pipe: in a folder that servers share, a file could be another
        # one's.
        ready, written = os.pipe()
        command = [sys.executable, '-m', 'tools_server', f'--config={config}', f'--port={port}']
        command += [
            f'--images={workdir / "images"}',
            f'--parent={os.getpid()}',
            f'--ready-fd={written}',
        ]
        command += [f'--mode={mode}'] if mode else []
        command += [f'--answers={Path(answers).absolute()}'] if answers else []
        with log, open(ready, 'rb', buffering=0) as pipe:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    pass_fds=(written,),
                    # Ctrl-C stops the run first; the run then stops its server
                    start_new_session=True,
                )
            finally:
                os.close(written)
            server = cls(process, '', log_path)
            try:
                server._wait(pipe, ready_timeout_s)
            except BaseException:
                server.close()
                raise
        return server

    def _wait(self, pipe: io.FileIO, timeout_s: float) -> None:
        """Takes the address that the server writes once it is ready."""
        deadline, said = time.monotonic() + timeout_s, b''
        while not said.endswith(b'\n'):
            # before reading, so that the last words are not missed
            ended = self.process.poll() is not None
            if select.select([pipe], [], [], 0 if ended else 0.1)[0]:
                part = pipe.read(4096)
                said += part
                if not part:  # it is about to end, and says why in its log
                    self.process.wait(10)
                    ended = True
            elif time.monotonic() > deadline:
                raise ToolServerError(
                    f'the tool server was not ready within {timeout_s:g} s; see {self.log_path}'
                )
            if ended and not said.endswith(b'\n'):
                lines = [
                    line
                    for line in self.log_path.read_text('utf-8', 'replace').splitlines()
                    if line.strip()
                ]
                reason = lines[-1] if lines else f'exit status {self.process.returncode}'
                raise ToolServerError(f'the tool server did not start: {reason}')
        self.url = said.decode().strip()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the server; it is given 10 seconds to do so itself."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> ToolServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """This process's environment, with the folder this package was imported from on the path."""
    environment = dict(os.environ)
    home = str(Path(__file__).resolve().parent.parent)
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (home, environment.get('PYTHONPATH'))))
    return environment


def _absolute(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with their files as absolute paths, since the written file lies elsewhere."""
    changed = dict(fields)
    for tool, name in PATHS:
        section = changed.get(tool)
        if isinstance(section, Mapping) and section.get(name) is not None:
            changed[tool] = dict(section) | {name: str(Path(section[name]).absolute())}
    return changed


def _own_log(folder: Path) -> tuple[BinaryIO, Path]:
    """A log that no other start writes to, open, and its path."""
    name = f'tools_server-{time.strftime("%Y%m%d-%H%M%S")}-{socket.gethostname()}-'
    number, path = tempfile.mkstemp('.log', name, folder)
    return open(number, 'wb'), Path(path)
