"""Image files from anywhere: what is too large is refused before it is decoded, what is odd becomes
upright RGB."""

import functools
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_bombs import chunk, saved
from PIL import Image, ImageOps
from small_world import encoded, picture

from tools_server.config import ImageStoreConfig
from tools_server.failures import ToolError
from tools_server.images import ImageStore
from tools_server.pictures.convert import read_rgb, to_rgb

LIMIT = 4_000_000
SMOOTH = Image.fromarray(picture(2))


@pytest.fixture(scope='module')
def store():
    store = ImageStore(ImageStoreConfig(max_pixels=LIMIT, max_bytes=3_000_000))
    yield store
    store.close()


def png(width, height, rows, extra=b''):
    """A PNG whose header says one thing and whose pixels may say another."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + extra
        + chunk(b'IDAT', rows)
        + chunk(b'IEND', b'')
    )


ZEROS = functools.cache(lambda count: zlib.compress(bytes(count), 9))


def changed(kind, place, layout, *values):
    """A sound file with other numbers at a place of its header."""
    data = bytearray(saved(SMOOTH, kind))
    struct.pack_into(layout, data, place, *values)
    return bytes(data)


def with_hidden(kind, head):
    """A small PNG with 200 MB of zeros packed into a chunk beside its pixels."""
    rows = zlib.compress(bytes((64 * 3 + 1) * 64))
    return png(64, 64, rows, chunk(kind, head + ZEROS(200_000_000)))


BOMBS = {  # each made where it is used, since it takes a moment
    'png of 3.6 gigapixels': lambda: png(60_000, 60_000, ZEROS(30_000_000)),
    'png of 4 gigapixels in one row': lambda: png(2**31 - 1, 2, ZEROS(30_000_000)),
    'png with more than it declares': lambda: png(64, 64, ZEROS(30_000_000)),
    'png with a compressed comment': lambda: with_hidden(b'zTXt', b'Comment\0\0'),
    'png with a compressed profile': lambda: with_hidden(b'iCCP', b'p\0\0'),
    'png of five megapixels': lambda: saved(Image.new('RGB', (2500, 2000)), 'PNG'),
    'gif with a huge canvas': lambda: changed('GIF', 6, '<HH', 65_535, 65_535),
    'bmp of 2.5 gigapixels': lambda: changed('BMP', 18, '<ii', 50_000, 50_000),
    'webp of 12 megapixels': lambda: saved(Image.new('RGB', (4000, 3000)), 'WEBP'),
    'tiff of 12 megapixels': lambda: saved(
        Image.new('1', (4000, 3000)), 'TIFF', compression='group4'
    ),
    'jpeg of 12 megapixels': lambda: saved(Image.new('L', (4000, 3000)), 'JPEG'),
}


@pytest.mark.parametrize('name', BOMBS)
def test_bombs_cost_neither_time_nor_memory(store, name):
    data = BOMBS[name]()
    start = time.monotonic()
    tracemalloc.start()
    try:
        store.add(data)
    except ToolError as error:
        assert error.kind == 'caller'
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 2 and peak < 80_000_000


@pytest.mark.parametrize('name', [name for name in BOMBS if 'pixels' in name or 'canvas' in name])
def test_too_many_pixels_are_refused(store, name):
    data = BOMBS[name]()
    with pytest.raises(ToolError) as error:
        store.add(data)
    assert error.value.kind == 'caller' and error.value.status in (400, 413)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.9])
def test_truncated_files_are_refused(store, kind, share):
    data = saved(SMOOTH, kind)
    with pytest.raises(ToolError) as error:
        store.add(data[: int(len(data) * share)])
    assert error.value.kind == 'caller'


@pytest.mark.parametrize(
    'data',
    [
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n', b'8BPS\0\1' + bytes(60),
        b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', b'%PDF-1.7\n', b'PK\3\4' + bytes(60),
        b'SIMPLE  =                    T' + bytes(2880), b'P6 99 99 255\n' + bytes(99 * 99 * 3), b'\xff\xd8\xff', b'\0' * 999,  # noqa: E501
    ],
    ids=['eps', 'psd', 'svg', 'pdf', 'zip', 'fits', 'ppm', 'jpeg start', 'zeros'],
)  # fmt: skip
def test_other_formats_are_not_even_tried(store, data):
    with pytest.raises(ToolError) as error:
        store.add(data)
    assert error.value.kind == 'caller'


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(store, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = store.add(saved(SMOOTH, 'PNG', exif=exif))[0]
    rotated = SMOOTH.copy()
    rotated.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(rotated))
    assert (image.height, image.width) == expected.shape[:2]
    np.testing.assert_array_equal(image.pixels(), expected)


def test_16_bit_and_cmyk_and_float(store):
    gray = picture(2)[..., 0].astype(np.uint16)
    sixteen = store.add(saved(Image.fromarray(gray * 257), 'PNG'))[0].pixels()
    np.testing.assert_array_equal(sixteen[..., 0], gray)
    cmyk = store.add(saved(SMOOTH.convert('CMYK'), 'JPEG', quality=95))[0].pixels()
    assert abs(cmyk.astype(int) - np.asarray(SMOOTH)).mean() < 8
    floats = store.add(saved(Image.fromarray(gray.astype(np.float32)), 'TIFF'))[0].pixels()
    np.testing.assert_array_equal(floats[..., 0], gray)


@pytest.mark.parametrize(
    'kind, scale',
    [
        (np.int32, 1),
        (np.int32, 257),
        (np.int32, 2**22),
        (np.uint16, 1),
        (np.float32, 1 / 255),
        (np.float32, 300),
    ],
)
def test_deep_grey_is_not_black(store, kind, scale):
    """Whatever the range of its values, which the file does not tell."""
    grey = np.linspace(0, 255, 60 * 60).reshape(60, 60) * scale
    data = saved(Image.fromarray(grey.astype(kind)), 'TIFF')
    pixels = store.add(data)[0].pixels()
    assert pixels.min() == 0 and pixels.max() > 127 and len(np.unique(pixels)) > 100
    np.testing.assert_array_equal(pixels, np.asarray(to_rgb(Image.fromarray(grey.astype(kind)))))


def test_values_that_are_no_numbers_are_black():
    odd = np.array([[np.nan, np.inf], [-5, 0.5]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(odd)))[..., 0].tolist() == [[0, 0], [0, 127]]


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_of_an_animation_the_first_frame_counts(store, kind):
    frames = [Image.fromarray(picture(number)) for number in range(2, 6)]
    lossless = {'lossless': True} if kind == 'WEBP' else {}
    pixels = store.add(saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))[
        0
    ].pixels()
    first, second = (abs(pixels.astype(int) - np.asarray(frame)).mean() for frame in frames[:2])
    assert first < 12 < second


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF']), st.data())
def test_damaged_files_are_images_or_failures(kind, data):
    """Whatever bytes are changed: an image within the limit or one kind of failure, never another
    exception."""
    file = bytearray(saved(SMOOTH.resize((60, 45)), kind))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=8)):
        file[place] = data.draw(st.integers(0, 255))
    try:
        pixels = read_rgb(bytes(file), LIMIT)
    except ToolError as error:
        assert error.kind == 'caller'
    else:
        assert (
            pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.shape[0] * pixels.shape[1] <= LIMIT
        )


def test_crop_is_exact(store):
    """The pixels of a crop are those of the original, cut and not resampled."""
    image = store.add(encoded(picture(4)))[0]
    crop = store.crop(image.sha256, (0.25, 0.5, 0.75, 1.0))[0]
    np.testing.assert_array_equal(crop.pixels(), picture(4)[135:270, 90:270])


def test_a_crop_that_no_policy_can_see_is_the_callers_mistake(store):
    """Out of a wide picture a box may be taller than 28 pixels and yet too long for a vision tower."""
    image = store.add(saved(Image.new('RGB', (6000, 100), 'red'), 'PNG'))[0]
    with pytest.raises(ToolError) as error:
        store.crop(image.sha256, (0.0, 0.0, 1.0, 0.28))
    assert (
        error.value.kind == 'caller'
        and '6000×28' in error.value.message
        and '200' in error.value.message
    )
    assert store.crop(image.sha256, (0.0, 0.0, 0.5, 0.28))[0].width == 3000
