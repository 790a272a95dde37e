"""Small picture files that are made to take long, or much memory, to decode."""

import io
import struct
import zlib

from PIL import Image
from small_world import picture


def saved(image, kind, **options):
    """A PIL picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def jpeg_of_many_scans(width=5000, height=5000, scans=2000):
    """A progressive JPEG whose last scan comes again and again: each goes over all of the picture."""
    data = saved(Image.new('L', (width, height), 130), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2] * scans + b'\xff\xd9'


def tiff_of_one_tile(side=16_000):
    """A TIFF of 100 × 100 pixels in one tile of `side` × `side`, which is decoded whole."""
    press = zlib.compressobj(9)
    tile = b''.join(press.compress(bytes(3 * side)) for _ in range(side)) + press.flush()
    entries = [
        (256, 4, 100), (257, 4, 100), (258, 3, 8), (259, 3, 8), (262, 3, 2), (277, 3, 3), (284, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 8 + 2 + 12 * 11 + 4), (325, 4, len(tile)),
    ]  # fmt: skip
    directory = struct.pack('<H', len(entries))
    directory += b''.join(struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in entries)
    return b'II*\0' + struct.pack('<I', 8) + directory + bytes(4) + tile


def avif_that_lies(width=6000, height=5000):
    """An AVIF whose header says 64 × 64 pixels."""
    data = saved(Image.new('RGB', (width, height)), 'AVIF', speed=10)
    return data.replace(struct.pack('>II', width, height), struct.pack('>II', 64, 64))


def png_of_many_chunks(count=2_000_000):
    """A PNG with empty chunks between its header and its pixels."""
    data = saved(Image.fromarray(picture(1)), 'PNG')
    return data[:33] + chunk(b'vpAg', b'') * count + data[33:]


def jpeg_of_many_segments(count=4_000_000):
    """A JPEG with empty comments before its pixels."""
    data = saved(Image.fromarray(picture(1)), 'JPEG')
    return data[:2] + b'\xff\xfe\0\2' * count + data[2:]


def jpeg_with_swollen_exif():
    """A JPEG whose camera data lists the same 60 kB five thousand times."""
    entries = 5000
    directory = struct.pack('<H', entries)
    directory += b''.join(struct.pack('<HHII', 0x8000 + n, 7, 65_000, 8) for n in range(entries))
    exif = b'Exif\0\0II*\0' + struct.pack('<I', 8) + directory
    exif += bytes(65_533 - len(exif))
    data = saved(Image.fromarray(picture(1)), 'JPEG')
    return data[:2] + b'\xff\xe1' + struct.pack('>H', 65_535) + exif + data[2:]


def gif_of_many_blocks(count=12_000_000):
    """A GIF whose comment is a chain of blocks of one byte each."""
    data = saved(Image.fromarray(picture(1)), 'GIF')
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:start] + b'!\xfe' + b'\1a' * count + b'\0' + data[start:]


BOMBS = {
    'jpeg of many scans': jpeg_of_many_scans,
    'tiff of one tile': tiff_of_one_tile,
    'avif that lies': avif_that_lies,
    'png of many chunks': png_of_many_chunks,
    'jpeg of many segments': jpeg_of_many_segments,
    'jpeg with swollen exif': jpeg_with_swollen_exif,
    'gif of many blocks': gif_of_many_blocks,
}
