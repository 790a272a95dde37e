"""Pictures by content hash: checked uploads, decoded originals within a memory limit, exact crops.

What the store holds under a hash is an encoded file whose SHA-256 is that hash and which decodes to an
upright RGB picture. On disk: the file and, beside it, its size and, for a crop, which part of which
original it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools_server.cache import Cache
from tools_server.config import ImageStoreConfig
from tools_server.failures import ToolError
from tools_server.imaging import encode, opened, read_rgb, upright_rgb

MIN_CROP_SIDE = 28  # pixels; a smaller picture is less than one visual token
PLAIN_FORMATS = {'JPEG': 'RGB', 'PNG': 'RGB'}  # kept as they came when upright, with this mode and one frame

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class StoredImage:
    """An image in a store; `width` and `height` in pixels."""

    store: ImageStore
    sha256: str
    width: int
    height: int
    origin: tuple[str, PixelBox] | None = (
        None  # for a crop: hash of the original and the part of it, in pixels
    )

    def encoded(self) -> bytes:
        """The image file."""
        return self.store.encoded(self.sha256)

    def pixels(self) -> np.ndarray:
        """[height, width, 3] uint8 RGB, read-only and shared; a crop's are a view of the original's."""
        if self.origin is not None:
            source, (left, top, right, bottom) = self.origin
            return self.store.decoded(source)[top:bottom, left:right]
        return self.store.decoded(self.sha256)


class ImageStore:
    """Pictures in a folder, by content hash. Safe to share between threads; nothing is ever rewritten.

    Args:
        config: folder, limits of an upload, and memory for decoded originals.
    """

    def __init__(self, config: ImageStoreConfig):
        self._config = config
        self._temporary = None
        if config.directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix='tools_server_')
            self._directory = Path(self._temporary.name)
        else:
            self._directory = config.directory
            self._directory.mkdir(parents=True, exist_ok=True)
        self._decoded = Cache(config.decoded_bytes, weigh=lambda pixels: pixels.nbytes)
        self._uploads = Cache(100_000)  # hash of the bytes as sent -> StoredImage
        self._crops = Cache(100_000)  # (image, box) -> StoredImage
        self._known = Cache(100_000)  # hash -> StoredImage

    def close(self) -> None:
        """Removes the folder if it was a temporary one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self, data: bytes) -> tuple[StoredImage, bool]:
        """Checks an uploaded file by decoding all of it, and keeps it.

        Returns the image and whether it was known.

        An upright 8-bit RGB JPEG or PNG is kept byte for byte, so its hash is the file's. Anything else is
        kept as an upright RGB PNG.

        Raises:
            ToolError: 'caller'; too large, not an image, damaged, or smaller than 28 pixels.
        """
        if len(data) > self._config.max_bytes:
            raise ToolError(
                'caller', f'the image has {len(data)} bytes, allowed are {self._config.max_bytes}', 413
            )
        return self._uploads.get_or_compute(hashlib.sha256(data).hexdigest(), lambda: self._add_new(data))

    def _add_new(self, data: bytes) -> StoredImage:
        with opened(data, self._config.max_pixels) as image:
            if min(image.size) < MIN_CROP_SIDE:
                raise ToolError(
                    'caller', f'the image has {image.width}×{image.height} pixels; sides must be at least 28'
                )
            upright = upright_rgb(image)  # decodes it, so what follows can rely on a sound file
            plain = PLAIN_FORMATS.get(image.format) == image.mode and getattr(image, 'n_frames', 1) == 1
            plain = plain and image.getexif().get(0x0112, 1) == 1 and not image.has_transparency_data
            if not plain:
                buffer = io.BytesIO()
                upright.save(buffer, 'PNG', compress_level=1)
                data = buffer.getvalue()
            pixels = np.asarray(upright)
        stored = self.add_encoded(data, upright.width, upright.height)
        self._decoded.put(stored.sha256, pixels)
        return stored

    def add_encoded(
        self, data: bytes, width: int, height: int, origin: tuple[str, PixelBox] | None = None
    ) -> StoredImage:
        """Keeps an image file of which everything is known already."""
        sha256 = hashlib.sha256(data).hexdigest()
        record = {'width': width, 'height': height}
        if origin is not None:
            record |= {'original': origin[0], 'box': origin[1]}
        path = self._path(sha256)
        if not path.with_suffix('.json').exists():
            path.parent.mkdir(exist_ok=True)
            _write_whole(path, data)
            _write_whole(path.with_suffix('.json'), json.dumps(record).encode())
        stored = StoredImage(self, sha256, width, height, origin)
        self._known.put(sha256, stored)
        return stored

    def get(self, sha256: str) -> StoredImage:
        """The image of a hash.

        Raises:
            ToolError: 'caller'; no such image was uploaded or made here.
        """
        return self._known.get_or_compute(sha256, lambda: self._read_record(sha256))[0]

    def _read_record(self, sha256: str) -> StoredImage:
        try:
            record = json.loads(self._path(sha256).with_suffix('.json').read_text())
        except OSError:
            raise ToolError('caller', f'there is no image {sha256}; upload it first', 404) from None
        origin = (record['original'], tuple(record['box'])) if 'original' in record else None
        return StoredImage(self, sha256, record['width'], record['height'], origin)

    def encoded(self, sha256: str) -> bytes:
        """The file of an image that `get` knows."""
        return self._path(sha256).read_bytes()

    def decoded(self, sha256: str) -> np.ndarray:
        """[height, width, 3] uint8 RGB of an image that `get` knows; the latest ones are kept decoded."""
        return self._decoded.get_or_compute(sha256, lambda: read_rgb(self.encoded(sha256)))[0]

    def crop(self, sha256: str, box: Box) -> tuple[StoredImage, bool]:
        """Cuts a part out of an image; a crop of a crop is cut from the original.

        Returns the part and whether it was known.

        Args:
            sha256: the image.
            box: x0, y0, x1, y1 as fractions of that image.

        Raises:
            ToolError: 'caller'; unknown image, or a part with a side below 28 pixels.
        """
        return self._crops.get_or_compute((sha256, box), lambda: self._crop_new(self.get(sha256), box))

    def _crop_new(self, image: StoredImage, box: Box) -> StoredImage:
        left, right = (round(value * image.width) for value in (box[0], box[2]))
        top, bottom = (round(value * image.height) for value in (box[1], box[3]))
        width, height = right - left, bottom - top
        if min(width, height) < MIN_CROP_SIDE:
            raise ToolError(
                'caller',
                f'the box is {width}×{height} pixels of an image of {image.width}×{image.height}; '
                f'each side must be at least {MIN_CROP_SIDE} pixels',
            )
        source, (x, y) = image.sha256, (0, 0)
        if image.origin is not None:
            source, (x, y, _, _) = image.origin
        part = (x + left, y + top, x + right, y + bottom)
        pixels = self.decoded(source)[part[1] : part[3], part[0] : part[2]]
        return self.add_encoded(encode(pixels), width, height, (source, part))

    def statistics(self) -> dict[str, dict[str, int]]:
        """Entries, hits and misses of the store's caches."""
        caches = {'images': self._uploads, 'crop': self._crops, 'decoded': self._decoded}
        return {name: cache.statistics() for name, cache in caches.items()}

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there with all its bytes or not at all, whoever else writes the same."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, 'wb') as file:
        file.write(data)
    os.replace(name, path)
