"""The parts of a JPEG or PNG file, listed without decoding anything.

It tells beforehand what decoding will cost, and which parts a picture can be shown without: camera
data, the place where it was taken, comments, whatever follows its end. Work is bounded however the
file is made, since only so many parts are looked at and the search between them is linear.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

MOST_PARTS = 20_000  # a file with more is none that this module lists
_MARKER = re.compile(rb'\xff+([^\xff])', re.DOTALL)
# not a stuffed byte, not a restart
_END_OF_SCAN = re.compile(rb'\xff[^\x00\xff\xd0-\xd7]', re.DOTALL)
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Of JPEG: sequential and progressive Huffman frames, tables, restarts, scans. Other kinds of frames
# are rare.
_FRAMES = (0xC0, 0xC1, 0xC2)
_TABLES = (0xC4, 0xDB, 0xDD)
# Of JPEG's application data what the colours depend on: JFIF, colour profile, Adobe's transform.
_COLOUR = ((0xE0, b'JFIF\0'), (0xE2, b'ICC_PROFILE\0'), (0xEE, b'Adobe'))
_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_CHUNKS = (
    b'IHDR', b'PLTE', b'IDAT', b'IEND', b'tRNS', b'gAMA', b'cHRM', b'sRGB', b'sBIT', b'iCCP',
    b'cICP',
)  # fmt: skip
# text in which a PNG may say how it is turned
_PNG_HIDDEN = (b'Raw profile type', b'XML:com.adobe.xmp')


class _Unlisted(Exception):
    """The file is damaged, of another kind, or made in a way that this module does not follow."""


@dataclass(frozen=True)
class Outline:
    """A JPEG or PNG file without its content.

    Attributes:
        format: of the file.
        width, height: as stored, in pixels.
        scans: passes over the whole picture that decoding makes, one at least.
        orientation: of EXIF, 1 to 8; 1 is upright.
        rgb: three channels of 8 bits without transparency, and one picture only.
        kept: start and end of each part that the picture needs.
    """

    format: Literal['JPEG', 'PNG']
    width: int
    height: int
    scans: int
    orientation: int
    rgb: bool
    kept: tuple[tuple[int, int], ...]

    @property
    def work(self) -> int:
        """Pixels that decoding goes over."""
        return self.width * self.height * self.scans


def outline(data: bytes) -> Outline | None:
    """The parts of a file; None for one that is no JPEG or PNG, is cut off or unusual."""
    try:
        if data[:2] == b'\xff\xd8':
            return _jpeg(data)
        if data[:8] == _PNG:
            return _png(data)
    except (_Unlisted, struct.error, IndexError):
        pass
    return None


def bare(data: bytes, found: Outline) -> bytes:
    """The file with nothing but the picture and its colours: no camera data, place or text."""
    start = data[:2] if found.format == 'JPEG' else data[:8]
    return start + b''.join(data[begin:end] for begin, end in found.kept)


def _jpeg(data: bytes) -> Outline:
    kept: list[tuple[int, int]] = []
    size, scans, orientation, ended = None, 0, 0, False
    for marker, start, end in _segments(data):
        content = data[start + 4 : end] if marker in (0xE0, 0xE1, 0xE2, 0xEE) else b''
        if marker in _FRAMES:
            if size is not None:
                raise _Unlisted
            depth, height, width, channels = struct.unpack_from('>BHHB', data, start + 4)
            size = width, height
        elif marker == 0xDA:
            scans += 1
        elif marker == 0xE1 and not orientation:
            if content.startswith(b'Exif\0\0'):
                orientation = _exif_orientation(content[6:])
            elif match := _XMP_ORIENTATION.search(content):
                orientation = int(match.group(1))
        elif marker == 0xD9:
            ended = True
        elif 0xC0 <= marker <= 0xDF and marker not in _TABLES:
            raise _Unlisted
        wanted = marker < 0xE0 or any(
            m == marker and content.startswith(name) for m, name in _COLOUR
        )
        if wanted:
            kept.append((start, end))
    if (
        size is None
        or not scans
        or not ended
        or 0 in size
        or depth != 8
        or channels not in (1, 3, 4)
    ):
        raise _Unlisted
    return Outline('JPEG', *size, scans, orientation or 1, channels == 3, tuple(kept))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment after the first marker; a scan's content belongs to it."""
    place = 2
    for _ in range(MOST_PARTS):
        match = _MARKER.match(data, place)
        if match is None:
            raise _Unlisted
        marker, start = match.group(1)[0], match.start(1) - 1
        if marker == 0xD9:
            yield marker, start, start + 2
            return
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            raise _Unlisted
        (length,) = struct.unpack_from('>H', data, start + 2)
        place = start + 2 + length
        if length < 2 or place > len(data):
            raise _Unlisted
        if marker == 0xDA:
            found = _END_OF_SCAN.search(data, place)
            if found is None:
                raise _Unlisted
            place = found.start()
        yield marker, start, place
    raise _Unlisted


def _exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of EXIF data; 0 where it says none, or is damaged."""
    order = {b'II*\0': '<', b'MM\0*': '>'}.get(bytes(exif[:4]))
    if order is None or len(exif) < 8:
        return 0
    (first,) = struct.unpack_from(order + 'I', exif, 4)
    if first + 2 > len(exif):
        return 0
    (count,) = struct.unpack_from(order + 'H', exif, first)
    for entry in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + 'HHIH', exif, entry)
        if tag == 0x0112:
            return value if kind == 3 and 1 <= value <= 8 else 0
    return 0


def _png(data: bytes) -> Outline:
    kept: list[tuple[int, int]] = []
    place, size, orientation, one, clear = 8, None, 1, True, True
    for _ in range(MOST_PARTS):
        length, kind = struct.unpack_from('>I4s', data, place)
        start, place = place, place + 12 + length
        if place > len(data) or (size is None) != (kind == b'IHDR'):
            raise _Unlisted
        if kind == b'IHDR':
            *size, depth, colour = struct.unpack_from('>IIBB', data, start + 8)
        elif kind == b'eXIf':
            orientation = _exif_orientation(data[start + 8 : place - 4]) or 1
        elif kind in (b'tEXt', b'zTXt', b'iTXt') and data.startswith(_PNG_HIDDEN, start + 8):
            raise _Unlisted
        one &= kind != b'acTL'
        clear &= kind != b'tRNS'
        if kind in _PNG_CHUNKS:
            kept.append((start, place))
        if kind == b'IEND':
            if 0 in size:
                raise _Unlisted
            rgb = (depth, colour) == (8, 2) and one and clear
            return Outline('PNG', *size, 1, orientation, rgb, tuple(kept))
    raise _Unlisted
