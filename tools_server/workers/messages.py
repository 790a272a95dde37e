"""Messages between the server and its workers: JSON values and bytes over a socket.

No pickles: a worker whose library was broken into by a file must not be able to run anything in the
server.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct('>Q')
_CHUNK = 2**20


def send(sock: socket.socket, values: Sequence[Any], end: float = math.inf) -> None:
    """Sends values, each of which is bytes or JSON-able.

    Args:
        sock: connected.
        values: JSON-able or bytes.
        end: `time.monotonic()` by which all must have been taken.

    Raises:
        TimeoutError: it was not.
        OSError: the other side is gone.
    """
    heads = [
        {'bytes': len(value)}
        if isinstance(value, bytes | bytearray | memoryview)
        else {'json': value}
        for value in values
    ]
    head = json.dumps(heads).encode()
    for part in (
        _LENGTH.pack(len(head)) + head,
        *(v for v, h in zip(values, heads, strict=True) if 'bytes' in h),
    ):
        rest = memoryview(part).cast('B')
        while rest:
            _wait_until(sock, end)
            rest = rest[sock.send(rest[:_CHUNK]) :]


def receive(sock: socket.socket, max_bytes: int, end: float = math.inf) -> list[Any] | None:
    """The values of the next message, bytes as bytearray; None where the other side has closed.

    Args:
        sock: connected.
        max_bytes: a longer message is an error.
        end: `time.monotonic()` by which the message must be here.

    Raises:
        TimeoutError: it is not.
        OSError: the other side broke off.
        ValueError: the message is too long, or none of ours.
    """
    start = _read(sock, _LENGTH.size, end, may_end=True)
    if start is None:
        return None
    (size,) = _LENGTH.unpack(start)
    if size > max_bytes:
        raise ValueError(f'a message of more than {max_bytes} bytes')
    heads = json.loads(_read(sock, size, end))
    if size + sum(head.get('bytes', 0) for head in heads) > max_bytes:
        raise ValueError(f'a message of more than {max_bytes} bytes')
    return [_read(sock, head['bytes'], end) if 'bytes' in head else head['json'] for head in heads]


def _read(sock: socket.socket, size: int, end: float, may_end: bool = False) -> bytearray | None:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        _wait_until(sock, end)
        count = sock.recv_into(rest, min(len(rest), _CHUNK))
        if count == 0:
            if may_end and len(rest) == size:
                return None
            raise ConnectionResetError('the other side broke off')
        rest = rest[count:]
    return data


def _wait_until(sock: socket.socket, end: float) -> None:
    """Lets the next operation of the socket wait until `end`."""
    if end == math.inf:
        sock.settimeout(None)
        return
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
