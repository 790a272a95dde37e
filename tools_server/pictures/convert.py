"""The one way from a picture file to upright RGB pixels of 8 bits, and the limits that every
picture keeps to.

The server and the trainer use it alike, so that boxes, crops, thumbnails and patches share one
frame:

- turned as EXIF (or XMP) says; of an animation or a file of several pages, the first
- transparency of any kind is laid on white
- a palette, black and white, CMYK, YCbCr and LAB as Pillow converts them; colour profiles are not
  applied
- colours of 16 bits lose their low byte; grey of more than 8 bits see `to_rgb`
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image as Pil
from PIL import ImageFile

from tools_server.failures import ToolError
from tools_server.pictures.outline import bare, outline

# of an original: twice an 8K frame is less, a photo of 50 megapixels is not more
MAX_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 200  # longer pictures no vision tower takes; Qwen's processor refuses them
MIN_CROP_SIDE = 28  # pixels; a smaller crop is less than one visual token

# Formats that are photographs or drawings and whose decoders are widely used on hostile files.
# Others that Pillow knows start interpreters (EPS) or are rare enough to be badly tested.
Pil.init()
FORMATS = [
    name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF') if name in Pil.OPEN
]

# Half a picture must be an error, whatever another library in this process prefers.
ImageFile.LOAD_TRUNCATED_IMAGES = False

_TURNS = {
    2: Pil.Transpose.FLIP_LEFT_RIGHT, 3: Pil.Transpose.ROTATE_180, 4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE, 6: Pil.Transpose.ROTATE_270, 7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_90,
}  # fmt: skip


def read_image(data: bytes, max_pixels: int | None = MAX_PIXELS) -> Pil.Image:
    """Decodes a picture file, in this process and for as long as it takes; see the module for what
    becomes of it.

    Args:
        data: the file.
        max_pixels: the largest picture that is decoded; None: any.

    Raises:
        ToolError: 'caller'; no image, a damaged one, or one beyond the limits.
    """
    found = outline(data)
    if found is None:
        with opened(data, max_pixels) as image:
            return upright(image)
    # Without its attachments: to read them can take more than to decode the picture, and nothing
    # needs them.
    with opened(bare(data, found), max_pixels) as image:
        return upright(image, found.orientation)


def read_rgb(data: bytes, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """`read_image` as [height, width, 3] uint8, read-only."""
    return np.asarray(read_image(data, max_pixels))


def opened(data: bytes, max_pixels: int | None) -> Pil.Image:
    """The image with its header read and its size checked, nothing decoded yet.

    Raises:
        ToolError: 'caller'; no image of a known format, or one beyond the limits.
    """
    try:
        with warnings.catch_warnings():
            # of bombs, whose limit is ours below, and of odd metadata
            warnings.simplefilter('ignore')
            image = Pil.open(io.BytesIO(data), formats=FORMATS)
    except Pil.DecompressionBombError:
        raise ToolError('caller', 'the image has too many pixels', 413) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise all kinds of errors on damaged headers
        raise ToolError('caller', 'the data is not an image of a known format') from None
    check_size(image.width, image.height, max_pixels)
    return image


def check_size(
    width: int, height: int, max_pixels: int | None = MAX_PIXELS, name: str = 'image'
) -> None:
    """Whether a picture of this size can be shown to a policy.

    Args:
        width: in pixels.
        height: in pixels.
        max_pixels: most of them; None: any number.
        name: of what is checked, for the message.

    Raises:
        ToolError: 'caller'; too many pixels, or more than 200 times as long as wide.
    """
    if max_pixels is not None and width * height > max_pixels:
        raise ToolError(
            'caller', f'the {name} has {width}×{height} pixels, allowed are {max_pixels}', 413
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ToolError(
            'caller',
            f'the {name} of {width}×{height} pixels is more than {MAX_ASPECT_RATIO} times as long as wide; '
            'give one that is less narrow',
        )


def upright(image: Pil.Image, orientation: int | None = None) -> Pil.Image:
    """Decodes the (first) frame to RGB, turned as `orientation` says.

    Args:
        image: opened.
        orientation: of EXIF, 1 to 8; None: as the file itself says.

    Raises:
        ToolError: 'caller'; the file is damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        if 'decoder error -9' in str(error):  # Pillow's number for memory that could not be had
            raise MemoryError from None
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ToolError('caller', f'the image is damaged: {reason}') from None
    turn = _TURNS.get(_orientation(image) if orientation is None else orientation)
    return to_rgb(image if turn is None else image.transpose(turn))


def _orientation(image: Pil.Image) -> int:
    """As EXIF or XMP says; where they are damaged, upright."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return image.getexif().get(0x0112, 1)
    except MemoryError:
        raise
    except Exception:  # again of all kinds
        return 1


def to_rgb(image: Pil.Image) -> Pil.Image:
    """A decoded picture of any mode as 8-bit RGB, not turned.

    Transparency (RGBA, LA, a palette or colour key) is laid on white, as transformers does. Grey of
    more than 8 bits, whose range a file does not tell, is divided by the smallest power of two that
    makes its largest value fit (whole numbers up to 255 stay, up to 65,535 lose their low byte);
    floating-point grey within [0, 1] is multiplied by 255 first. Negative values and NaN are black.
    """
    if image.mode.startswith('I') or image.mode == 'F':
        grey = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        most = grey.max(initial=0)
        if image.mode == 'F' and most <= 1:
            grey = grey * 255
        elif most >= 256:
            grey = grey / 2.0 ** (8 if most < 65536 else np.ceil(np.log2(most + 1)) - 8)
        return Pil.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Pil.alpha_composite(Pil.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB') if image.mode != 'RGB' else image
