"""Rows of groups as padded arrays: buckets, positions, feature rows, and refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_batches import batch_of
from small_policies import END, GRIDS, MERGE, PAD, START, table, tokens_of

from sensesearch_jax.batching.group_batch import Member, Row, image_rows
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.model.rope import mrope_positions


def build(rows, members=2, **options):
    return batch_of(
        rows, members, **{'prompt_step': 16, 'suffix_step': 8, 'feature_step': 8} | options
    )


@given(st.integers(1, 1 << 40), st.integers(1, 512))
def test_bucket_holds_the_length_with_a_third_to_spare_at_most(length, step):
    size = bucket(length, step)
    assert size >= length and size % step == 0
    assert size == step or 2 * size <= 3 * length + 3 * step
    assert bucket(size, step) == size


@given(st.integers(1, 1 << 40), st.integers(1, 512))
def test_a_finer_bucket_spares_a_ninth_at_most_beyond_eight_steps(length, step):
    size = bucket(length, step, 8)
    assert length <= size <= bucket(length, step) and size % step == 0
    assert size - length < max(step, size / 9 + step)
    assert len({bucket(n * step, step, 8) for n in range(1, 65)}) == 32


def test_buckets_are_few():
    assert sorted({bucket(n, 64) for n in range(1, 1025)}) == [
        64,
        128,
        192,
        256,
        384,
        512,
        768,
        1024,
    ]
    assert bucket(0, 8) == 8


def test_image_rows_follow_the_order_of_the_images():
    offsets = {'a': (0, 2), 'b': (2, 3)}
    tokens = [5, PAD, PAD, PAD, 6, PAD, PAD, 7, PAD, PAD]
    assert image_rows(tokens, ['b', 'a', 'a'], offsets, PAD).tolist() == [
        -1,
        2,
        3,
        4,
        -1,
        0,
        1,
        -1,
        0,
        1,
    ]
    assert image_rows([1, 2], [], {}, PAD).tolist() == [-1, -1]


@pytest.mark.parametrize(
    'tokens, images', [([PAD], []), ([1], ['a']), ([PAD, PAD, PAD], ['a']), ([PAD], ['a'])]
)
def test_image_tokens_and_images_must_agree(tokens, images):
    with pytest.raises(
        ValueError, match=f'{tokens.count(PAD)} image tokens stand for {len(images)} images'
    ):
        image_rows(tokens, images, {'a': (0, 2)}, PAD)


def test_a_batch_holds_the_rows():
    """Everything where it belongs: the prompt's last token opens each suffix, images share one
    table."""
    random = np.random.default_rng(0)
    prompt, images = tokens_of([5, 'scene', 6], random)
    later, crops = tokens_of([4, 'crop', 3, 'thumbnail', 2], random)
    short, scene = tokens_of([2, 'scene'], random)  # the prompt's own picture again
    own = [token != PAD for token in later]
    log_probs = random.normal(size=len(later)).tolist()
    other, none = tokens_of([3], random)
    rows = [
        Row(
            prompt,
            images,
            [Member(later, own, crops, log_probs), Member(short, [False] * len(short), scene)],
        ),
        Row(other, none, [Member([7, 8], [True, False])]),
    ]
    batch = build(rows, members=3, batch=4)
    assert (
        batch.prompt.shape == (4, 32)
        and batch.tokens.shape == (4, 3, 24)
        and batch.features.shape == (4, 32, 32)
    )
    p, s = len(prompt) - 1, 1 + len(later)
    assert batch.prompt[0, :p].tolist() == prompt[:-1] and batch.prompt_valid.sum(1).tolist() == [
        p,
        2,
        0,
        0,
    ]
    assert batch.tokens[0, 0, :s].tolist() == [prompt[-1], *later]
    assert batch.valid.sum(-1).tolist() == [[s, 1 + len(short), 0], [3, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert (
        batch.response_mask[0, 0, :s].tolist() == [False, *own]
        and not batch.response_mask[0, 0, s:].any()
    )
    assert batch.response_mask[1, 0, :3].tolist() == [False, True, False]
    assert (
        np.allclose(batch.log_probs[0, 0, :s], [0, *log_probs]) and not batch.log_probs[0, 1].any()
    )

    # Features: each row's own table, in order of first use, and those of one picture wherever it is
    # shown.
    expected = np.concatenate([table().features[name] for name in ('scene', 'crop', 'thumbnail')])
    assert (
        np.array_equal(batch.features[0, : len(expected)], expected)
        and not batch.features[0, len(expected) :].any()
        and not batch.features[1:].any()
    )

    def shown(tokens, index):
        return batch.features[0, index[: len(tokens)][np.array(tokens) == PAD]]

    assert np.array_equal(shown(prompt[:-1], batch.prompt_features[0]), table().features['scene'])
    assert np.array_equal(
        shown(later, batch.feature_index[0, 0, 1:]),
        np.concatenate([table().features['crop'], table().features['thumbnail']]),
    )
    assert np.array_equal(shown(short, batch.feature_index[0, 1, 1:]), table().features['scene'])
    text = np.ones_like(batch.feature_index[0, 0], bool)
    text[1:s][np.array(later) == PAD] = False
    assert (batch.feature_index[0, 0][text] == -1).all() and (batch.feature_index[1] == -1).all()

    # Positions: those of the whole conversation.
    whole, _ = mrope_positions(prompt + later, [GRIDS[name] for name in images + crops], PAD, MERGE)
    assert np.array_equal(batch.prompt_positions[:, 0, :p], whole[:, :p])
    assert np.array_equal(batch.positions[:, 0, 0, :s], whole[:, p:])
    whole, _ = mrope_positions(prompt + short, [GRIDS['scene']] * 2, PAD, MERGE)
    assert np.array_equal(batch.positions[:, 0, 1, : 1 + len(short)], whole[:, p:])


def test_members_begin_at_the_same_position_whatever_stands_beside_them():
    def row(*lengths):
        return Row(
            [1, START, *[PAD] * 2, END, 2],
            ['thumbnail'],
            [Member([3] * n, [True] * n) for n in lengths],
        )

    wide, alone = build([row(5, 1)]), build([row(5)], members=1)
    assert np.array_equal(wide.positions[:, :, :1], alone.positions)
    assert (
        wide.positions[0, 0, 0, 0]
        == wide.positions[0, 0, 1, 0]
        == 5
        == wide.prompt_positions[0, 0, 4] + 1
    )


def test_a_picture_that_does_not_fit_its_tokens_is_refused():
    with pytest.raises(ValueError):
        build([Row([1, START, PAD, END, 2], ['thumbnail'], [])])
    with pytest.raises(ValueError):
        build([Row([1, 2], [], [Member([3, START, PAD, PAD, END], [False] * 5)])])
    with pytest.raises(ValueError):  # of a crop that a cut conversation shows half of
        build([Row([1, 2], [], [Member([3, START, *[PAD] * 4], [False] * 6, ['crop'])])])


def test_shapes_come_from_few_buckets():
    shapes = set()
    for n in range(1, 60):
        batch = build([Row([1] * (n + 1), [], [Member([2] * n, [True] * n)])], batch=2)
        shapes.add((batch.prompt.shape, batch.tokens.shape))
    assert len(shapes) <= 12


def test_packing_leaves_out_padding_and_nothing_else():
    random = np.random.default_rng(0)
    valid = random.random((3, 2, 50)) < 0.4
    valid[1] = False  # a row without anything
    packing = Packing.of(valid, 16)
    assert packing.index.shape == (
        3,
        bucket(int(valid.sum((1, 2)).max()), 16, FINE),
    ) and packing.inverse.shape == (3, 100)
    for row, index, inverse in zip(valid.reshape(3, -1), *packing):
        assert (index[index >= 0] == np.flatnonzero(row)).all() and ((inverse >= 0) == row).all()
        assert (index[inverse[row]] == np.flatnonzero(row)).all()
