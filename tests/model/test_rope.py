"""3-D positions equal transformers' `get_rope_index`, whole or grown piece by piece."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from sensesearch_jax.model.rope import mrope_positions, text_rotary

PAD, MERGE = 9, 2


def reference_positions(tokens, grids, merge=MERGE):
    """Both families' own functions, which agree on images, called without building a model."""
    one, other = (
        _positions(kind, tokens, grids, merge) for kind in (Qwen2_5_VLModel, Qwen3VLModel)
    )
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]
    return one


def _positions(kind, tokens, grids, merge):
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=merge, tokens_per_second=2)
    )
    model = SimpleNamespace(config=config, get_vision_position_ids=None)
    model.get_vision_position_ids = kind.get_vision_position_ids.__get__(model)
    ids = torch.tensor([tokens])
    positions, delta = kind.get_rope_index(
        model, ids, (ids == PAD).int(), image_grid_thw=torch.tensor(grids).reshape(-1, 3)
    )
    return positions[:, 0].numpy(), int(delta) + len(tokens)


def picture(height, width, merge=MERGE):
    """A picture of `height` × `width` merged tokens between its vision start and end tokens:
    tokens, grid."""
    return [7] + [PAD] * (height * width) + [8], (1, height * merge, width * merge)


def conversation(layout, merge=MERGE):
    """Tokens and grids of a list whose items are a text length or the (height, width) of a picture."""
    tokens, grids = [], []
    for item in layout:
        if isinstance(item, int):
            tokens += [1] * item
        else:
            image, grid = picture(*item, merge)
            tokens += image
            grids.append(grid)
    return tokens, grids


@pytest.mark.parametrize(
    'layout',
    [
        [5, (3, 5), 4],
        [(1, 1)],
        [2, (9, 16), 11, (4, 3), 20, (1, 7), (7, 1), 3],
        [30, (2, 2), 1, (5, 5)],
    ],
)
@pytest.mark.parametrize('merge', [1, 2, 3])
def test_whole_conversations(layout, merge):
    tokens, grids = conversation(layout, merge)
    positions, following = mrope_positions(tokens, grids, PAD, merge)
    expected, expected_following = reference_positions(tokens, grids, merge)
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, expected)
    assert following == expected_following


pieces = st.lists(
    st.lists(
        st.one_of(st.integers(0, 6), st.tuples(st.integers(1, 6), st.integers(1, 6))), max_size=4
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(pieces)
def test_piece_by_piece_equals_whole(turns):
    whole_tokens, whole_grids = conversation([item for turn in turns for item in turn])
    whole, whole_following = mrope_positions(whole_tokens, whole_grids, PAD, MERGE)
    grown, following = [], 0
    for turn in turns:
        tokens, grids = conversation(turn)
        positions, following = mrope_positions(tokens, grids, PAD, MERGE, start=following)
        grown.append(positions)
    np.testing.assert_array_equal(np.concatenate(grown, axis=1), whole)
    assert following == whole_following
    if whole_tokens:
        expected, expected_following = reference_positions(whole_tokens, whole_grids)
        np.testing.assert_array_equal(whole, expected)
        assert whole_following == expected_following


def test_pictures_side_by_side_stay_two():
    """Without a token between them the grids still tell one picture from the next."""
    positions, following = mrope_positions([PAD] * 3, [(1, 2, 2), (1, 2, 4)], PAD, MERGE)
    assert positions.tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]] and following == 3


def test_text_only_and_empty():
    positions, following = mrope_positions([1, 2, 3], [], PAD, MERGE, start=4)
    assert positions.tolist() == [[4, 5, 6]] * 3 and following == 7
    positions, following = mrope_positions([], [], PAD, MERGE, start=4)
    assert positions.shape == (3, 0) and following == 4


@pytest.mark.parametrize(
    ('tokens', 'grids', 'complaint'),
    [
        ([1, PAD, PAD], [(1, 4, 4)], 'image 1 needs 4'),
        ([1, PAD, PAD, 1, PAD, PAD], [(1, 4, 4)], 'image 1 needs 4'),
        ([1, 2], [(1, 2, 2)], 'image 1 needs 1'),
        ([PAD, 1, PAD], [(1, 2, 2)], '1 placeholder tokens belong to none'),
        ([PAD], [(1, 3, 2)], 'multiples of 2'),
        ([PAD, PAD], [(2, 2, 2)], 'no still picture'),
    ],
)
def test_mismatches_are_refused(tokens, grids, complaint):
    with pytest.raises(ValueError, match=complaint):
        mrope_positions(tokens, grids, PAD, MERGE)


def test_interleaved_frequencies():
    """Every third of the first 60 goes to the row and every third to the column, the others to time;
    three unequal positions tell them apart."""
    theta, half = 5e6, 64
    cos, _ = text_rotary(jnp.array([[3], [50], [700]]), 2 * half, theta, (24, 20, 20), True)
    axis = [j % 3 if j < 60 else 0 for j in range(half)]
    angles = np.array([(3, 50, 700)[a] for a in axis]) * theta ** (-np.arange(half) / half)
    np.testing.assert_allclose(cos[0], np.cos(np.tile(angles, 2)), atol=1e-4)
    assert [axis.count(a) for a in range(3)] == [24, 20, 20]
    blocks, _ = text_rotary(jnp.array([[3], [50], [700]]), 2 * half, theta, (24, 20, 20), False)
    assert np.abs(np.asarray(blocks - cos)).max() > 0.1
