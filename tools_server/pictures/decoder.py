"""Decoding where it can do no harm: what is known to cost little here, everything else in a worker
process.
"""

from __future__ import annotations

import math
import resource
import sys
import threading

import numpy as np
from PIL import Image as Pil

from tools_server.failures import ToolError
from tools_server.pictures.convert import MAX_PIXELS, opened, read_image, read_rgb, upright
from tools_server.pictures.outline import Outline, outline
from tools_server.workers.pool import WorkerPool, WorkFailed

# Decoding here cannot be stopped, so it must be over soon, and take memory that its size foretells.
MOST_WORK = 300_000_000  # pixels times scans: about two seconds
MOST_PIXELS_HERE = 36_000_000  # an 8K frame; at up to 13 bytes a pixel while it is decoded
# Memory of a worker: libraries need some for any picture, and a picture up to so many bytes a
# pixel.
SPARE_BYTES = 96 * 2**20
BYTES_PER_PIXEL = 14


def gentle(found: Outline | None) -> bool:
    """Whether decoding a file of this outline takes little time, wherever it is done."""
    return found is not None and found.work <= MOST_WORK


def read_gentle(data: bytes) -> Pil.Image:
    """Decodes a picture of a kind that the server hands out, in this process, to upright RGB.

    Raises:
        ToolError: 'caller'; it is another kind of file, damaged, or takes long to decode.
    """
    if not gentle(outline(data)):
        raise ToolError(
            'caller', 'the image is no JPEG or PNG that is complete and quick to decode'
        )
    return read_image(data)


class Decoder:
    """Decodes pictures from anywhere to upright RGB. Safe to share between threads.

    Args:
        max_pixels: the largest picture that is decoded.
        seconds: longest time that one may take.
        workers: processes for pictures that could take long or much; they start when first needed.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, seconds: float = 5.0, workers: int = 2):
        self._max_pixels = max_pixels
        self._seconds = seconds
        self._here = threading.BoundedSemaphore(workers)
        self._pool = WorkerPool(
            'decoding of images',
            workers,
            SPARE_BYTES + BYTES_PER_PIXEL * max_pixels,
            ['tools_server.pictures.decoder'],
        )

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def statistics(self) -> dict[str, int]:
        """Of the workers, see `WorkerPool.statistics`."""
        return self._pool.statistics()

    def decodes_here(self, found: Outline | None) -> bool:
        """Whether a file of this outline is decoded without a worker."""
        return gentle(found) and found.width * found.height <= min(
            MOST_PIXELS_HERE, self._max_pixels
        )

    def read(
        self, data: bytes, max_pixels: int | None = None, found: Outline | None = None
    ) -> np.ndarray:
        """Decodes a picture file to upright [height, width, 3] uint8 RGB.

        Args:
            data: the file.
            max_pixels: a smaller limit than the decoder's.
            found: its outline, where that is known.

        Raises:
            ToolError: 'caller'; no image, a damaged one, or one beyond the limits of size, time or
                memory. 'timeout' where the current deadline comes first, 'unavailable' where a
                worker ended.
        """
        most = min(self._max_pixels, max_pixels or self._max_pixels)
        found = found or outline(data)
        if self.decodes_here(found):
            with self._here:  # each may take hundreds of megabytes
                return read_rgb(data, most)
        try:
            job = 'tools_server.pictures.decoder:decode_job'
            height, width, pixels = self._pool.run(job, data, most, seconds=self._seconds)
        except WorkFailed as error:
            # Beyond its limits it will always be; a process that ended or failed may have had
            # another reason.
            ours = error.reason in ('crash', 'error')
            kind, status = ('unavailable', 503) if ours else ('caller', 413)
            why = (
                'takes more memory than its size calls for'
                if error.reason == 'memory'
                else str(error)
            )
            raise ToolError(kind, f'the image cannot be used: decoding it {why}', status) from None
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def decode_job(data: bytearray, max_pixels: int) -> tuple[int, int, memoryview]:
    """In a worker: height, width and pixels of a picture, within memory for its header's size."""
    whole = resource.getrlimit(resource.RLIMIT_AS)
    try:
        _limit_memory(SPARE_BYTES + 2 * len(data), whole)  # some headers are bombs too
        with opened(data, max_pixels) as image:
            _limit_memory(
                SPARE_BYTES + len(data) + BYTES_PER_PIXEL * image.width * image.height, whole
            )
            pixels = np.asarray(upright(image))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, whole)
    return *pixels.shape[:2], memoryview(pixels.reshape(-1))


def _limit_memory(growth: int, whole: tuple[int, int]) -> None:
    if sys.platform != 'linux':  # as the pool's own limit
        return
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    most = math.inf if whole[0] == resource.RLIM_INFINITY else whole[0]
    resource.setrlimit(resource.RLIMIT_AS, (int(min(now + growth, most)), whole[1]))
