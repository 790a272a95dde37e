"""A worker: a process that runs named functions on what the server sends it, one after another.

    python -m tools_server.workers.worker SOCKET MEMORY_BYTES [MODULE ...]

It ends when the server closes its end, whatever became of the server.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import resource
import socket
import sys
from typing import Any

from tools_server.failures import ToolError
from tools_server.memory import resident_bytes, trim
from tools_server.workers.messages import receive, send

# below the server, which must answer while all workers are busy, and not far below others
NICENESS = 5
MOST_GROWTH_BYTES = 64 * 2**20  # a worker that holds so much more after a job is replaced


def main(arguments: list[str]) -> None:
    """Serves until the other side closes its end of the socket.

    Args:
        arguments: number of the socket's descriptor, memory that a job may take in bytes, and the
            modules to import first.
    """
    sock = socket.socket(fileno=int(arguments[0]))
    memory_bytes = int(arguments[1])
    for module in arguments[2:]:
        importlib.import_module(module)
    gc.freeze()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = resident_bytes()
    _limit_memory(memory_bytes)
    try:
        send(sock, ['ready'])
        while (request := receive(sock, sys.maxsize)) is not None:
            name, seconds, *values = request
            _limit_processor_time(seconds)
            reply, sound = _reply(name, values)
            del values, request
            if resident_bytes() > base + MOST_GROWTH_BYTES:
                trim()
            sound = sound and resident_bytes() <= base + MOST_GROWTH_BYTES
            send(sock, [*reply, sound])
            if not sound:
                return
    except OSError:
        return  # the server has gone, or no longer waits


def _reply(name: str, values: list[Any]) -> tuple[list[Any], bool]:
    """The outcome of a call, its values, and whether this process may go on."""
    try:
        module, _, function = name.partition(':')
        value = getattr(importlib.import_module(module), function)(*values)
        return (['values', *value] if isinstance(value, tuple) else ['value', value]), True
    except ToolError as error:
        return ['tool error', error.kind, error.message, error.status], True
    except MemoryError:
        return ['memory'], False
    except Exception as error:
        return [
            'error',
            type(error).__name__,
            str(error)[:500].encode('utf-8', 'replace').decode(),
        ], True


def _limit_memory(memory_bytes: int) -> None:
    """From here on the process may grow by so much."""
    if sys.platform == 'linux':  # elsewhere the limit is not kept, or setting it fails
        with open('/proc/self/statm') as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))


def _limit_processor_time(seconds: float) -> None:
    """Ends this process when a job takes longer, as the server does unless it was killed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


if __name__ == '__main__':
    main(sys.argv[1:])
