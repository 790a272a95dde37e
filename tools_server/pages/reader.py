"""Reads web pages and PDF files in worker processes."""

from __future__ import annotations

import os

from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.workers.pool import WorkerPool, WorkFailed

_EXTRACT = 'tools_server.pages.extract'
LARGE_BYTES = 256 * 2**10
SMALL_S, LARGE_S = 1.0, 3.0  # longest time for one page; ordinary ones take 20 ms
# longest wait for a worker; in a crowd of large pages an excerpt now is better than a page later
WAIT_S = 2.0
PAGE_BYTES = 320_000_000  # most memory that one may take; 4 MB of small elements take 150 MB
MOST_WORKERS = 4


class PageReader:
    """The text of fetched files, by workers that a hostile file cannot hold.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        size = min(MOST_WORKERS, max(2, (os.cpu_count() or 1) // 4))
        self._pool = WorkerPool('reading the page', size, PAGE_BYTES, [_EXTRACT])
        self._pool.warm()

    def text(self, data: bytes, content_type: str) -> str:
        """The readable text, one line per block; '' where there is none.

        Args:
            data: the file.
            content_type: as its server named it.

        Raises:
            ToolError: 'refused' for a file that cannot be read within the limits; 'timeout';
                'unavailable'.
        """
        large = len(data) > LARGE_BYTES
        seconds = LARGE_S if large else SMALL_S
        try:
            with deadline.within(seconds + WAIT_S):
                return self._pool.run(
                    f'{_EXTRACT}:text_of', data, content_type, seconds=seconds, large=large
                )
        except WorkFailed as error:
            raise ToolError('refused', f'reading the page {error}') from None

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()
