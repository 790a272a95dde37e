"""Functions that the tests run in workers: good ones and bad ones."""

import ctypes
import os
import time

from tools_server.failures import ToolError


def echo(*values):
    return values


def reverse(data: bytearray) -> bytes:
    return bytes(data[::-1])


def process_id() -> int:
    return os.getpid()


def environment() -> dict:
    return dict(os.environ)


def loop() -> None:
    while True:
        pass


def nap(seconds: float) -> str:
    time.sleep(seconds)
    return 'slept'


def take_memory(size: int) -> int:
    return len(bytearray(size))


def keep_memory(size: int, kept=[]) -> int:
    kept.append(b'x' * size)
    return len(kept)


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def complain(kind: str) -> None:
    if kind == 'caller':
        raise ToolError('caller', 'the picture is no picture', 413)
    raise ValueError('half a \ud800 sentence')
