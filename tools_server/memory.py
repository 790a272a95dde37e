"""Memory settings of the C library, for a server of many threads that decodes large pictures."""

from __future__ import annotations

import ctypes
import os
import threading
import time

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# A buffer from this size on goes back to the system as soon as it is free: those of a 4K picture,
# but not those of a search, whose pages would have to be made anew each time (of 1 MiB, a search
# took twice as long).
LARGE_BYTES = 8 * 2**20
TRIM_EVERY_S, TRIM_AT_LEAST_EVERY_S = 2.0, 20.0
TRIM_BYTES = 32 * 2**20  # of growth since the last time, before it is worth the work


def return_large_buffers() -> bool:
    """Makes freed buffers leave the process; whether the C library can be told so (glibc can).

    By default glibc learns from the first freed buffers of a size to keep those of later ones, in
    an arena for each thread: a server that had decoded sixty 4K pictures held 2.8 GB of which 0.5
    were in use. To be called before the threads start.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {_M_MMAP_THRESHOLD: LARGE_BYTES, _M_TRIM_THRESHOLD: LARGE_BYTES, _M_ARENA_MAX: 2}
    return all([mallopt(name, value) for name, value in settings.items()])


def trim() -> bool:
    """Hands free memory back to the system; whether the C library can do so (glibc can).

    Freed buffers below `LARGE_BYTES` go back by themselves only from the end of the heap: after
    half a minute of hostile pages, half of a server's memory was free and not given back.
    """
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    malloc_trim(0)  # without Python's lock, for it takes some milliseconds
    return True


def trim_while_running() -> None:
    """Starts a thread that calls `trim` when the process has grown, and now and then."""

    def work() -> None:
        while trim():
            left, due = resident_bytes(), time.monotonic() + TRIM_AT_LEAST_EVERY_S
            while resident_bytes() < left + TRIM_BYTES and time.monotonic() < due:
                time.sleep(TRIM_EVERY_S)

    threading.Thread(target=work, name='memory', daemon=True).start()


def resident_bytes() -> int:
    """Memory of this process that is in use or not given back; 0 where the system does not tell."""
    try:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0
