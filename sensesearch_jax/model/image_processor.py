"""Image processor: resizes and normalizes pictures on the host, and splits them into patches.

Bit-equal to transformers' `Qwen2VLImageProcessorPil`, without importing it. The settings come from
the policy directory alone, so a trainer, a sampler and a server that read the same directory see the
same patches.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sensesearch_jax.errors import UserError, field
from sensesearch_jax.runtime.workdir import atomic_write
from tools_server.pictures.convert import MAX_ASPECT_RATIO, to_rgb

# Defaults of transformers' processor.
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 28 * 28 * 1280
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BICUBIC = 3  # PIL's number for the filter, as the JSON file writes it


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Resized height and width: multiples of `factor`, area in the budget, aspect ratio nearly kept.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        factor: side of one merged token in pixels (patch size × merge size, 28 for Qwen2.5-VL).
        min_pixels: least resized area in pixels.
        max_pixels: largest resized area in pixels.

    Returns:
        (height, width) in pixels. Slivers thinner than `factor` are widened to it and may then
        exceed `max_pixels`.

    Raises:
        ValueError: an empty picture, or one more than 200 times as long as wide.

    Source: Qwen2-VL (arXiv 2409.12191, section 2.1), with the rounding of transformers'
    `smart_resize`.
    """
    if height < 1 or width < 1:
        raise ValueError(f'an image of {width}×{height} pixels is empty; give one of at least 1×1')
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f'an image of {width}×{height} pixels has an aspect ratio of {ratio:.0f}; '
            f'crop it to one of at most {MAX_ASPECT_RATIO}'
        )
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return rows * factor, columns * factor


@dataclass(frozen=True)
class Preprocessor:
    """Image processor of a policy, with the fields of the Hugging Face processor's settings."""

    min_pixels: int = DEFAULT_MIN_PIXELS
    max_pixels: int = DEFAULT_MAX_PIXELS
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    rescale_factor: float = 1 / 255

    def __post_init__(self):
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f'min_pixels {self.min_pixels} and max_pixels {self.max_pixels} leave no size; '
                'set 0 < min_pixels <= max_pixels'
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise ValueError(
                'image_mean and image_std need three numbers each, for red, green and blue'
            )

    @classmethod
    def read(cls, path: str | Path) -> 'Preprocessor':
        """Image processor from the settings of a policy directory, or of one of its files.

        Of a directory's files `processor_config.json` goes first where it holds an
        `image_processor` (transformers 5 writes no other), then `preprocessor_config.json`, as in
        transformers. The budget may be written as min_pixels/max_pixels or as size {shortest_edge,
        longest_edge}; the former wins, as there.

        Raises:
            UserError: no such file, not JSON, or a setting that is not supported (a step switched
                off, another resize filter).
        """
        file, config = _image_settings(Path(path))
        for step in ('do_resize', 'do_rescale', 'do_normalize', 'do_convert_rgb'):
            if config.get(step) is False:
                raise UserError(
                    f'{file} switches {step} off, but the patches need it; set it to true'
                )
        if config.get('resample') not in (None, BICUBIC):
            raise UserError(
                f'{file} asks for resample {config["resample"]}; only 3 (bicubic) is supported'
            )

        def setting(name: str, default):
            return default if config.get(name) is None else config[name]

        size = setting('size', {})
        with field(str(file)):
            return cls(
                min_pixels=setting('min_pixels', size.get('shortest_edge') or DEFAULT_MIN_PIXELS),
                max_pixels=setting('max_pixels', size.get('longest_edge') or DEFAULT_MAX_PIXELS),
                patch_size=setting('patch_size', cls.patch_size),
                merge_size=setting('merge_size', cls.merge_size),
                temporal_patch_size=setting('temporal_patch_size', cls.temporal_patch_size),
                image_mean=tuple(setting('image_mean', CLIP_MEAN)),
                image_std=tuple(setting('image_std', CLIP_STD)),
                rescale_factor=setting('rescale_factor', cls.rescale_factor),
            )

    def within(self, min_pixels: int, max_pixels: int) -> 'Preprocessor':
        """Image processor with another budget of pixels; 0 keeps the present bound.

        Raises:
            ValueError: min_pixels would exceed max_pixels.
        """
        return replace(
            self, min_pixels=min_pixels or self.min_pixels, max_pixels=max_pixels or self.max_pixels
        )

    def write_budget(self, folder: str | Path) -> None:
        """Writes the budget to the processor files of a policy directory, so that whoever serves the
        policy sees the same patches.
        """
        for name in ('preprocessor_config.json', 'processor_config.json'):
            path = Path(folder) / name
            if not path.is_file():
                continue
            config = read_object(path)
            if name == 'processor_config.json' and 'image_processor' not in config:
                continue  # it has no image settings, and is not read for them
            written = config.get('image_processor', config)
            budget = {'min_pixels': self.min_pixels, 'max_pixels': self.max_pixels}
            if written.get('size'):
                budget['size'] = {'shortest_edge': self.min_pixels, 'longest_edge': self.max_pixels}
            if any(written.get(key) != value for key, value in budget.items()):
                written |= budget
                atomic_write(path, json.dumps(config, indent=2) + '\n')

    @property
    def most_tokens(self) -> int:
        """Number of tokens of the largest picture, but for slivers that are widened."""
        return self.max_pixels // self.token_side**2

    @property
    def least_tokens(self) -> int:
        """Number of tokens of the smallest picture."""
        return -(-self.min_pixels // self.token_side**2)

    def pixels_of(self, tokens: int) -> int:
        """Area in pixels of a picture of so many tokens."""
        return tokens * self.token_side**2

    @property
    def token_side(self) -> int:
        """Side of one merged token in resized pixels (28 for Qwen2.5-VL)."""
        return self.patch_size * self.merge_size

    @property
    def patch_width(self) -> int:
        """Width of a flattened patch: colours × frames × rows × columns (1,176 for Qwen2.5-VL)."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Grid (1, h, w) of patches of a picture of `width` × `height` pixels: frames, rows, columns.

        Raises:
            ValueError: as `smart_resize`.
        """
        rows, columns = smart_resize(
            height, width, self.token_side, self.min_pixels, self.max_pixels
        )
        return 1, rows // self.patch_size, columns // self.patch_size

    def merged_tokens(self, width: int, height: int) -> int:
        """Number of visual tokens of a picture of `width` × `height` pixels."""
        frames, rows, columns = self.grid(width, height)
        return frames * rows * columns // self.merge_size**2

    @cached_property
    def _levels(self) -> np.ndarray:
        """Normalized value of each of the 256 levels of each colour, float32 [3, 256].

        A table instead of arithmetic per pixel: the same operations in the same precision as
        transformers' (rescale in float64, round to float32, normalize in float32), so equal bit by
        bit, and several times faster.
        """
        levels = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = np.float32(self.image_mean), np.float32(self.image_std)
        return (levels - mean[:, None]) / std[:, None]

    def patches(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Patches of one picture, in the order in which the vision tower merges them.

        Args:
            image: any PIL picture; other modes than RGB are converted by `to_rgb`. Its orientation
                tag is ignored: `tools_server.pictures.convert.read_image` reads files upright.

        Returns:
            float32 [h*w, 3*frames*patch*patch] and the grid (1, h, w) in patches. The merge × merge
            patches of a merged token are consecutive, and merged tokens as well as the patches of
            each are in row order; a flattened patch is ordered by colour, frame, row, column. A
            still picture is repeated for each of the `temporal_patch_size` frames.

        Raises:
            ValueError: as `smart_resize`.
            OSError: from PIL, where the file behind the picture is broken.
        """
        frames, rows, columns = self.grid(*image.size)
        side, merge = self.patch_size, self.merge_size
        resized = to_rgb(image).resize((columns * side, rows * side), resample=BICUBIC)
        pixels = np.asarray(resized).reshape(
            rows // merge, merge, side, columns // merge, merge, side, 3
        )
        pixels = pixels.transpose(0, 6, 3, 1, 4, 2, 5)
        out = np.empty(
            (rows // merge, columns * merge, 3, self.temporal_patch_size, side * side), np.float32
        )
        # A row of merged tokens at a time, all of which stays in the processor's cache.
        for row, values in zip(pixels, out):
            for colour, levels in enumerate(self._levels):
                flat = np.ascontiguousarray(row[colour]).reshape(columns * merge, side * side)
                values[:, colour] = cv2.LUT(flat, levels)[:, None]
        return out.reshape(rows * columns, self.patch_width), (frames, rows, columns)


def _image_settings(path: Path) -> tuple[Path, dict]:
    """File of a policy directory's image processor settings, and these; `path` may be the file."""
    if path.is_dir():
        nested = path / 'processor_config.json'
        if nested.is_file() and 'image_processor' in read_object(nested):
            path = nested
        else:
            path = path / 'preprocessor_config.json'
    config = read_object(path)
    settings = config.get('image_processor', config)
    if not isinstance(settings, dict):
        raise UserError(
            f'{path}: image_processor is no JSON object; take the file from the policy again'
        )
    return path, settings


def read_object(file: Path) -> dict[str, Any]:
    """JSON object of a file of a policy directory.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'cannot read {file}: {error.strerror}; give a Hugging Face policy directory'
        ) from None
    except ValueError as error:
        raise UserError(
            f'{file} is not JSON: {error}; take the file from the policy again'
        ) from None
    if not isinstance(config, dict):
        raise UserError(f'{file} is no JSON object; take the file from the policy again')
    return config
