"""Window order equals that of transformers' vision tower, whatever the padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from sensesearch_jax.model.config import VisionSizes
from sensesearch_jax.model.vision_windows import batch_images, window_slots


def vision_sizes(merge, window):
    """A tower with windows of `window` merged tokens; patches of one pixel keep the arrays small."""
    return VisionSizes(
        depth=1,
        width=8,
        mlp_width=8,
        heads=1,
        out_width=8,
        patch_size=1,
        temporal_patch_size=1,
        merge_size=merge,
        window_size=window * merge,
    )


sides = st.tuples(st.integers(1, 12), st.integers(1, 12))  # rows and columns of merged tokens


@settings(max_examples=60, deadline=None)
@given(
    pictures=st.lists(sides, min_size=1, max_size=3),
    window=st.integers(1, 5),
    merge=st.integers(1, 3),
    spare=st.integers(0, 2),
)
def test_window_order_equals_the_reference(pictures, window, merge, spare):
    """Without its padding a batch holds the reference's patches: same windows, same order, same
    positions."""
    grids = [(1, rows * merge, columns * merge) for rows, columns in pictures]
    random = np.random.default_rng(0)
    images = [(random.normal(size=(h * w, 3)).astype(np.float32), (1, h, w)) for _, h, w in grids]
    slots = (
        max(window_slots(rows, columns, window) for rows, columns in pictures) + spare * window**2
    )
    batch = batch_images(
        images, vision_sizes(merge, window), slots=slots, count=len(images) + spare
    )
    assert batch.patches.shape == (len(images) + spare, slots * merge**2, 3)
    assert not batch.patches[~batch.valid].any() and not batch.valid[len(images) :].any()

    for number, ((patches, grid), (rows, columns)) in enumerate(zip(images, pictures)):
        index, ends = get_vision_window_index(torch.tensor([grid]), merge, window * merge, 1)
        real = batch.valid[number]
        expected = patches.reshape(rows * columns, -1)[index.numpy()].reshape(-1, 3)
        np.testing.assert_array_equal(batch.patches[number][real], expected)
        place = get_vision_position_ids(torch.tensor([grid]), merge).reshape(rows * columns, -1)[
            index
        ]
        np.testing.assert_array_equal(batch.positions[number][real], place.reshape(-1, 2))
        filled = real.reshape(-1, (window * merge) ** 2).sum(axis=1)
        np.testing.assert_array_equal(filled[filled > 0], np.diff(ends.numpy()))
        count = batch.counts[number]
        tokens = batch.patches[number].reshape(slots, -1)[batch.order[number, :count]]
        np.testing.assert_array_equal(tokens.reshape(-1, 3), patches)


def test_a_batch_too_small_is_refused():
    images = [(np.zeros((32, 3), np.float32), (1, 4, 8))]
    with pytest.raises(ValueError, match='do not fit'):
        batch_images(images, vision_sizes(2, 2), slots=4)
    with pytest.raises(ValueError, match='do not fit'):
        batch_images(images * 2, vision_sizes(2, 2), count=1)
