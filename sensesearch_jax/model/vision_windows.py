"""Window order of images for the vision tower: windows of patches, each padded to its full size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sensesearch_jax.model.config import VisionSizes


class ImageBatch(NamedTuple):
    """Batch of N padded images, the arguments of `VisionTower`.

    `counts` are the numbers of merged tokens of the images.
    """

    patches: Float[np.ndarray, 'n i c']
    positions: Int[np.ndarray, 'n i 2']
    valid: Bool[np.ndarray, 'n i']
    order: Int[np.ndarray, 'n m']
    counts: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def window_layout(
    rows: int, columns: int, window: int
) -> tuple[Int[np.ndarray, ' s'], Int[np.ndarray, ' m']]:
    """Permutation between reading order and window order of an image's merged tokens.

    Args:
        rows: merged tokens along the image's height.
        columns: merged tokens along the image's width.
        window: merged tokens along a window's side.

    Returns:
        slots: merged token at each place in (padded) window order, -1 on padding.
        order: place in window order of each merged token in reading order.
    """
    high, wide = -(-rows // window) * window, -(-columns // window) * window
    padded = np.full((high, wide), -1, np.int32)
    padded[:rows, :columns] = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    slots = (
        padded.reshape(high // window, window, wide // window, window)
        .transpose(0, 2, 1, 3)
        .reshape(-1)
    )
    order = np.empty(rows * columns, np.int32)
    order[slots[slots >= 0]] = np.nonzero(slots >= 0)[0]
    return slots, order


def window_slots(rows: int, columns: int, window: int) -> int:
    """Number of places in padded window order.

    Args:
        rows: merged tokens along the image's height.
        columns: merged tokens along the image's width.
        window: merged tokens along a window's side.
    """
    return len(window_layout(rows, columns, window)[0])


def batch_images(
    images: Sequence[tuple[Float[np.ndarray, 'i c'], tuple[int, int, int]]],
    sizes: VisionSizes,
    *,
    slots: int | None = None,
    count: int | None = None,
) -> ImageBatch:
    """Padded batch of images.

    Args:
        images: patches in the processor's order, and grid of patches (1, h, w), of each image.
        sizes: of the vision tower.
        slots: places for merged tokens per image, at least what each needs; the largest need by
            default.
        count: rows of the batch, at least the images; extra rows are empty.

    Raises:
        ValueError: the images do not fit into `slots` and `count`.
    """
    merge, window = sizes.merge_size, sizes.window_tokens
    layouts = [window_layout(h // merge, w // merge, window) for _, (_, h, w) in images]
    need = max(len(s) for s, _ in layouts)
    slots, count = slots or need, count or len(images)
    if slots < need or count < len(images):
        raise ValueError(
            f'{len(images)} images of up to {need} places do not fit into {count} × {slots}.'
        )
    unit = merge**2
    patches = np.zeros((count, slots, unit, sizes.patch_width), np.float32)
    positions = np.zeros((count, slots, unit, 2), np.int32)
    valid = np.zeros((count, slots, unit), bool)
    order = np.zeros((count, slots), np.int32)
    inner = np.stack(np.divmod(np.arange(unit), merge), axis=-1)
    for n, ((flat, (_, h, w)), (layout, back)) in enumerate(zip(images, layouts)):
        used = np.nonzero(layout >= 0)[0]
        token = layout[used]
        patches[n, used] = flat.reshape(-1, unit, sizes.patch_width)[token]
        corner = np.stack(np.divmod(token, w // merge), axis=-1) * merge
        positions[n, used] = corner[:, None] + inner
        valid[n, used] = True
        order[n, : len(back)] = back

    def flat(z):
        return z.reshape(count, slots * unit, *z.shape[3:])

    return ImageBatch(
        flat(patches), flat(positions), flat(valid), order, tuple(len(back) for _, back in layouts)
    )
