"""Pictures by content hash: checked uploads, decoded originals within a memory limit, exact crops.

What the store holds under a hash is an encoded file whose SHA-256 is that hash and which decodes to
an upright RGB picture. Of a crop it knows which part of which original it is.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pil

from tools_server.cache import Cache
from tools_server.config import ImageStoreConfig
from tools_server.failures import ToolError
from tools_server.pictures.convert import MIN_CROP_SIDE, check_size, read_rgb
from tools_server.pictures.decoder import Decoder, gentle
from tools_server.pictures.encode import encode
from tools_server.pictures.folder import PictureFolder
from tools_server.pictures.outline import Outline, bare, outline

MOST_NAMES = 30_000  # pictures, crops and uploads of which the store remembers what they are

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class StoredImage:
    """An image in a store; `width` and `height` in pixels."""

    store: ImageStore
    sha256: str
    width: int
    height: int
    # for a crop: hash of the original and the part of it, in pixels
    origin: tuple[str, PixelBox] | None = None

    def encoded(self) -> bytes:
        """The image file."""
        return self.store.encoded(self.sha256)

    def pixels(self) -> np.ndarray:
        """[height, width, 3] uint8 RGB, read-only, shared; a crop is a view of the original."""
        if self.origin is not None and self.store.folder.has(self.origin[0]):
            source, (left, top, right, bottom) = self.origin
            return self.store.decoded(source)[top:bottom, left:right]
        return self.store.decoded(self.sha256)


class ImageStore:
    """Pictures in a folder, by content hash. Safe to share between threads; nothing is ever
    rewritten.

    Args:
        config: folder, limits of an upload, and memory for decoded originals.
        decoder: reads what is uploaded.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, config: ImageStoreConfig, decoder: Decoder | None = None):
        self._config = config
        self.decoder = decoder or Decoder(config.max_pixels, config.decode_s, config.decoders)
        self.folder = PictureFolder(config.directory, config.folder_bytes, config.keep_hours * 3600)
        self._decoded = Cache(config.decoded_bytes, weigh=lambda pixels: pixels.nbytes)
        self._uploads = Cache(MOST_NAMES)  # hash of the bytes as sent -> StoredImage
        self._crops = Cache(MOST_NAMES)  # (image, box) -> StoredImage
        self._known = Cache(MOST_NAMES)  # hash -> StoredImage

    def close(self) -> None:
        """Ends the decoder's workers, and removes the folder if it was a temporary one."""
        self.decoder.close()
        self.folder.close()

    def add(self, data: bytes, workers: bool = True) -> tuple[StoredImage | None, bool]:
        """Checks an uploaded file by decoding all of it, and keeps it.

        Returns the image and whether it was known.

        An upright 8-bit RGB JPEG or PNG is kept byte for byte, so its hash is the file's. Anything
        else, and what takes long to decode, is kept as an upright RGB PNG.

        Args:
            data: the file.
            workers: False gives None in place of an image for a file that is new and needs a
                worker.

        Raises:
            ToolError: 'caller'; not an image, damaged, or beyond the limits of size, time or
                memory.
        """
        if len(data) > self._config.max_bytes:
            raise ToolError(
                'caller',
                f'the image has {len(data)} bytes, allowed are {self._config.max_bytes}',
                413,
            )
        name = hashlib.sha256(data).hexdigest()
        known, found = self._uploads.peek(name), None
        if known is None or not self._there(known):
            found = outline(data)
            if not workers and not self.decoder.decodes_here(found):
                return None, False
        return self._uploads.get_or_compute(name, lambda: self._add_new(data, found), self._there)

    def _there(self, image: StoredImage) -> bool:
        """Whether its file is still in the folder; it and, for a crop, its original count as used."""
        if image.origin is not None:
            self.folder.has(image.origin[0])
        return self.folder.has(image.sha256)

    def _add_new(self, data: bytes, found: Outline | None) -> StoredImage:
        pixels = self.decoder.read(data, found=found)
        height, width = pixels.shape[:2]
        stored = self.add_encoded(data if _is_kept(found) else _png(pixels), width, height)
        self._decoded.put(stored.sha256, pixels)
        return stored

    def add_encoded(
        self, data: bytes, width: int, height: int, origin: tuple[str, PixelBox] | None = None
    ) -> StoredImage:
        """Keeps an image file of which everything is known already.

        Args:
            data: an upright 8-bit RGB JPEG or PNG.
            width: in pixels.
            height: in pixels.
            origin: of a crop, hash of the original and the part of it, in pixels.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.folder.has(sha256):
            record = {'width': width, 'height': height}
            if origin is not None:
                record |= {'original': origin[0], 'box': origin[1]}
            self.folder.write(sha256, data, record)
        stored = StoredImage(self, sha256, width, height, origin)
        self._known.put(sha256, stored)
        return stored

    def get(self, sha256: str) -> StoredImage:
        """The image of a hash; it and, for a crop, its original count as used.

        Raises:
            ToolError: 'caller'; no such image was uploaded or made here, or it was removed.
        """
        return self._known.get_or_compute(sha256, lambda: self._read_record(sha256), self._there)[0]

    def _read_record(self, sha256: str) -> StoredImage:
        record = self.folder.record(sha256)
        origin = (record['original'], tuple(record['box'])) if 'original' in record else None
        return StoredImage(self, sha256, record['width'], record['height'], origin)

    def encoded(self, sha256: str) -> bytes:
        """The file of an image that `get` knows."""
        return self.folder.read(sha256)

    def bare(self, sha256: str) -> bytes:
        """The same without camera data, place or text, for services that others run."""
        data = self.encoded(sha256)
        found = outline(data)
        return data if found is None else bare(data, found)

    def decoded(self, sha256: str) -> np.ndarray:
        """[height, width, 3] uint8 RGB of an image that `get` knows; the latest are kept."""
        return self._decoded.get_or_compute(
            sha256, lambda: self.decoder.read(self.encoded(sha256))
        )[0]

    def crop(self, sha256: str, box: Box) -> tuple[StoredImage, bool]:
        """Cuts a part out of an image; a crop of a crop is cut from the original.

        Returns the part and whether it was known.

        Args:
            sha256: the image.
            box: x0, y0, x1, y1 as fractions of that image.

        Raises:
            ToolError: 'caller'; unknown image, or a part with a side below 28 pixels (where the
                image has as many) or more than 200 times as long as wide.
        """
        return self._crops.get_or_compute(
            (sha256, box), lambda: self._crop_new(self.get(sha256), box), self._there
        )

    def _crop_new(self, image: StoredImage, box: Box) -> StoredImage:
        left, right = (round(value * image.width) for value in (box[0], box[2]))
        top, bottom = (round(value * image.height) for value in (box[1], box[3]))
        width, height = right - left, bottom - top
        if width < min(MIN_CROP_SIDE, image.width) or height < min(MIN_CROP_SIDE, image.height):
            raise ToolError(
                'caller',
                f'the box is {width}×{height} pixels of an image of {image.width}×{image.height}; '
                f'each side must be at least {MIN_CROP_SIDE} pixels',
            )
        check_size(width, height, name='box')
        source, (x, y) = image.sha256, (0, 0)
        if image.origin is not None and self.folder.has(image.origin[0]):
            source, (x, y, _, _) = image.origin
        part = (x + left, y + top, x + right, y + bottom)
        pixels = self.decoded(source)[part[1] : part[3], part[0] : part[2]]
        return self.add_encoded(encode(pixels), width, height, (source, part))

    def statistics(self) -> dict[str, dict[str, int]]:
        """Entries, hits and misses of the store's caches; its folder and its decoder's workers."""
        caches = {'images': self._uploads, 'crop': self._crops, 'decoded': self._decoded}
        files = {'folder': self.folder.statistics(), 'decoders': self.decoder.statistics()}
        return {name: cache.statistics() for name, cache in caches.items()} | files


def kept_file(data: bytes) -> bytes:
    """The file that a store keeps of an uploaded one, made in this process, however long it takes.

    Raises:
        ToolError: 'caller'; it is no image.
    """
    return data if _is_kept(outline(data)) else _png(read_rgb(data, max_pixels=None))


def _is_kept(found: Outline | None) -> bool:
    """Whether a file is kept byte for byte: it is upright RGB and quick to decode."""
    return gentle(found) and found.rgb and found.orientation == 1


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pil.fromarray(pixels).save(buffer, 'PNG', compress_level=1)
    return buffer.getvalue()
