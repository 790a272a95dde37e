"""How the C library hands memory out and back, for a server of many threads that decodes large
pictures.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# A buffer from this size on goes back to the system as soon as it is free: those of a 4K picture,
# but not those of a search, whose pages would have to be made anew each time (of 1 MiB, a search
# took twice as long).
LARGE_BYTES = 8 * 2**20


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
