"""Image files from anywhere to upright RGB pixels, and back; limits are checked before anything is decoded."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image as Pil
from PIL import ImageFile, ImageOps

from tools_server.failures import ToolError

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
# Formats that are photographs or drawings and whose decoders are widely used on hostile files. Others that
# Pillow knows start interpreters (EPS) or are rare enough to be badly tested.
Pil.init()
FORMATS = [name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF') if name in Pil.OPEN]

# Half a picture must be an error, whatever another library in this process prefers.
ImageFile.LOAD_TRUNCATED_IMAGES = False


def encode(pixels: np.ndarray) -> bytes:
    """[height, width, 3] uint8 RGB as a JPEG of quality 95 without colour subsampling.

    A PNG of a large crop of a photograph takes ten times as long and is four times as large.
    """
    return cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG)[1].tobytes()


def read_rgb(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """Decodes an image file to upright [height, width, 3] uint8 RGB.

    Transparency is laid on white, 16-bit channels are scaled to 8, of an animation the first frame is taken.

    Raises:
        ToolError: 'caller'; no image, a damaged one, or one of more than `max_pixels`.
    """
    with opened(data, max_pixels) as image:
        return np.asarray(upright_rgb(image))


def opened(data: bytes, max_pixels: int | None) -> Pil.Image:
    """The image with its header read and its size checked, nothing decoded yet.

    Raises:
        ToolError: 'caller'; no image of a known format, or one of more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                'ignore', Pil.DecompressionBombWarning
            )  # the limit below is the one that counts
            image = Pil.open(io.BytesIO(data), formats=FORMATS)
    except Pil.DecompressionBombError:
        raise ToolError('caller', 'the image has too many pixels', 413) from None
    except Exception:
        raise ToolError('caller', 'the data is not an image of a known format') from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ToolError(
            'caller', f'the image has {image.width}×{image.height} pixels, allowed are {max_pixels}', 413
        )
    return image


def upright_rgb(image: Pil.Image) -> Pil.Image:
    """Decodes the (first) frame and turns it as its EXIF tag says.

    Raises:
        ToolError: 'caller'; the file is damaged.
    """
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16') or image.mode == 'I':
            return Pil.fromarray(
                (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
            ).convert('RGB')
        if image.has_transparency_data:
            image = image.convert('RGBA')
            return Pil.alpha_composite(Pil.new('RGBA', image.size, 'white'), image).convert('RGB')
        return image.convert('RGB')
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise ToolError('caller', f'the image is damaged: {" ".join(str(error).split())[:200]}') from None
