"""Settings of the C library's allocator that keep freed memory in the process."""

from __future__ import annotations

import os
import sys


def keep_memory(module: str) -> None:
    """Restarts this process as `python -m module`, with the same arguments and an allocator that
    keeps freed memory.

    Linux's C library otherwise returns every large temporary of a CPU program to the system and
    faults it in again, which costs a small policy 20 to 40 % of its time. All threads share one
    arena, the one that grows by the program break: the others return whatever is larger than 64 MB.
    The library reads its settings once, at the start of a process. Settings that the environment
    has already stay.
    """
    if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ:
        return
    large = 1 << 34
    os.environ['GLIBC_TUNABLES'] = ':'.join(
        (
            'glibc.malloc.hugetlb=1',
            'glibc.malloc.arena_max=1',
            f'glibc.malloc.trim_threshold={large}',
            f'glibc.malloc.mmap_threshold={large >> 2}',
            f'glibc.malloc.top_pad={1 << 28}',
        )
    )
    os.execv(sys.executable, [sys.executable, '-m', module, *sys.argv[1:]])
