"""Starts the tool server as a process of its own on this machine, and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

READY = 'tools_server ready at '  # starts the line that says so; the address follows


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

        It ends with `close`, at the end of the `with` block, and when the calling process dies in whatever
        way.

        Args:
            config: a YAML file, or its fields (then relative paths start from the current folder).
            workdir: folder for its log (tools_server.log) and its pictures (images/), which a later start
                finds again. port: 0 takes any free one. ready_timeout_s: longest time to load, in seconds.
            mode: 'live', 'record', 'replay' or 'offline', instead of the config's.
            answers: the file of answers (of modes 'record' and 'replay' the recording), instead of the
                config's.

        Raises:
            ToolServerError: it ended instead, or was not ready in time.
        """
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if isinstance(config, Mapping):
            path = workdir / 'tools_server.yaml'
            path.write_text(yaml.safe_dump(_absolute(dict(config))), encoding='utf-8')
            config = path
        log_path = workdir / 'tools_server.log'
        command = [sys.executable, '-m', 'tools_server', f'--config={config}', f'--port={port}']
        command += [f'--images={workdir / "images"}', f'--parent={os.getpid()}']
        command += [f'--mode={mode}'] if mode else []
        command += [f'--answers={Path(answers).absolute()}'] if answers else []
        with open(log_path, 'ab') as log:
            offset = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C stops the run first; the run then stops its server
            )
        server = cls(process, '', log_path)
        deadline = time.monotonic() + ready_timeout_s
        try:
            while True:
                ended = process.poll() is not None  # before reading, so that the last words are not missed
                output = _tail(log_path, offset)
                for line in output.splitlines(keepends=True):
                    if line.startswith(READY) and line.endswith('\n'):
                        server.url = line.removeprefix(READY).strip()
                        return server
                if ended:
                    lines = [line for line in output.splitlines() if line.strip()]
                    reason = lines[-1] if lines else f'exit status {process.returncode}'
                    raise ToolServerError(f'the tool server did not start: {reason}')
                if time.monotonic() > deadline:
                    raise ToolServerError(
                        f'the tool server was not ready within {ready_timeout_s:g} s; see {log_path}'
                    )
                time.sleep(0.05)
        except BaseException:
            server.close()
            raise

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the server; it is given 5 seconds to do so itself."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
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


def _tail(path: Path, offset: int) -> str:
    with open(path, 'rb') as log:
        log.seek(offset)
        return log.read().decode('utf-8', 'replace')
