"""Dense targets: where the objects of a picture lie among its visual tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sensesearch_jax.pocket.pretraining.probes import (
    ATTRIBUTES,
    COUNTS,
    LINES,
    WEIGHTS,
    Probes,
    visual_targets,
)
from sensesearch_jax.rewards.crop_geometry import loose_box


def boxes(*objects):
    return np.array(objects, np.float32).reshape(-1, 4)


def test_targets_of_a_picture():
    """Two objects on a grid of 4 rows and 5 columns that begins at token 3."""
    left, right = (0.0, 0.0, 0.2, 0.5), (0.61, 0.76, 0.99, 0.99)
    found = visual_targets([boxes(left, right)], [(4, 5)], [3], 30)
    assert found.visual.shape == (1, 30) and found.visual[0].nonzero()[0].tolist() == list(
        range(3, 23)
    )

    def grid(field):
        return getattr(found, field)[0, 3:23].reshape(4, 5, *getattr(found, field).shape[2:])

    assert (grid('row') == np.arange(4)[:, None]).all() and (grid('column') == np.arange(5)).all()
    inside = np.zeros((4, 5), bool)
    inside[:2, 0] = inside[3, 3:] = True
    assert (grid('inside') == inside).all()
    edges = grid('edges')
    assert (edges[:2, 0] == np.rint(np.array(loose_box(left)) * 10)).all()
    assert (edges[3, 3:] == np.rint(np.array(loose_box(right)) * 10)).all()
    assert edges[:2, 0].tolist() == [[0, 0, 3, 6]] * 2 and edges[3, 3].tolist() == [5, 7, 10, 10]


def test_a_small_object_is_in_the_token_that_holds_its_centre():
    found = visual_targets([boxes((0.41, 0.41, 0.43, 0.43))], [(3, 3)], [0], 9)
    assert found.inside[0].nonzero()[0].tolist() == [4]
    assert found.edges[0, 4].tolist() == [3, 3, 5, 5]


def test_of_two_objects_a_token_belongs_to_the_one_that_covers_it_more():
    found = visual_targets([boxes((0.0, 0.0, 0.12, 1.0), (0.14, 0.0, 0.45, 1.0))], [(1, 4)], [0], 4)
    # Token 0 reaches to 0.25: the first object covers nearly half of it and has its centre there.
    assert found.inside[0].tolist() == [True, True, False, False]
    assert found.edges[0, 0].tolist() == [0, 0, 2, 10] and found.edges[0, 1].tolist() == [
        1,
        0,
        5,
        10,
    ]


def test_looks_belong_to_the_tokens_of_their_objects():
    objects = boxes((0.0, 0.0, 0.2, 0.5), (0.61, 0.76, 0.99, 0.99), (0.61, 0.0, 0.99, 0.2))
    found = visual_targets([objects], [(4, 5)], [3], 30, attributes=[np.array([4, -1, 7])])
    attribute = found.attribute[0, 3:23].reshape(4, 5)
    assert (
        attribute[:2, 0].tolist() == [4, 4]
        and attribute[0, 3:].tolist() == [7, 7]
        and (attribute == -1).sum() == 16
    )
    assert (visual_targets([objects], [(4, 5)], [3], 30).attribute == -1).all()


def test_objects_are_counted_row_by_row():
    """Three centres in a grid of 2 rows and 3 columns: tokens 1 (two of them) and 3."""
    objects = boxes((0.4, 0.1, 0.5, 0.2), (0.4, 0.3, 0.6, 0.4), (0.0, 0.6, 0.2, 0.8))
    found = visual_targets([objects], [(2, 3)], [1], 9)
    assert found.counted[0].tolist() == [0, 0, 2, 2, 3, 3, 3, 0, 0]
    many = boxes(*[(i / 20, 0.1, i / 20 + 0.04, 0.2) for i in range(12)])
    assert visual_targets([many], [(1, 1)], [0], 1).counted[0, 0] == COUNTS - 1


def test_rows_without_picture_or_object():
    found = visual_targets([boxes(), boxes()], [None, (2, 2)], [0, 1], 6)
    assert not found.visual[0].any() and not found.inside.any()
    assert found.visual[1].tolist() == [False, True, True, True, True, False]
    assert all(np.isfinite(field).all() for field in found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 0.99)] * 2, *[st.floats(0.005, 1)] * 2), max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_any_objects(objects, rows, columns, start):
    """Every object is inside some token unless another one took it; lines stay on the grid and in
    order."""
    objects = boxes(*[(x, y, min(1.0, x + w), min(1.0, y + h)) for x, y, w, h in objects])
    found = visual_targets([objects], [(rows, columns)], [start], start + rows * columns + 2)
    assert found.visual.sum() == rows * columns and not (found.inside & ~found.visual).any()
    assert found.inside.any() == bool(len(objects))
    lines = found.edges[found.inside]
    assert (lines >= 0).all() and (lines < LINES).all()
    assert (lines[:, 0] < lines[:, 2]).all() and (lines[:, 1] < lines[:, 3]).all()


def test_probes_learn_what_the_values_hold():
    """Right read-outs give no loss; what is not visual, or not inside, does not count."""
    attributes = [np.array([ATTRIBUTES - 1]), np.zeros(0, int)]
    targets = visual_targets(
        [boxes((0.1, 0.1, 0.5, 0.6)), boxes()], [(3, 4), None], [1, 0], 16, attributes=attributes
    )
    random = np.random.default_rng(0)
    rows, columns = 6, 7
    width = 1 + 4 * LINES + rows + columns + ATTRIBUTES + COUNTS
    probes = Probes(width, rows, columns, nnx.Rngs(0))
    probes.read.kernel.set_value(jnp.eye(width))
    probes.read.bias.set_value(jnp.zeros(width))

    def one_hot(i, n):
        return np.eye(n, dtype=np.float32)[i] * 50

    right = np.concatenate(
        [
            np.where(targets.inside, 50, -50)[..., None],
            one_hot(targets.edges, LINES).reshape(2, 16, -1),
            one_hot(targets.row, rows),
            one_hot(targets.column, columns),
            one_hot(np.maximum(targets.attribute, 0), ATTRIBUTES),
            one_hot(targets.counted, COUNTS),
        ],
        -1,
    ).astype(np.float32)
    loss, parts = probes(jnp.asarray(right), targets)
    assert parts.keys() == WEIGHTS.keys() and float(loss) < 1e-4
    noisy = np.where(targets.visual[..., None], right, random.normal(size=right.shape) * 9)
    looks = slice(-ATTRIBUTES - COUNTS, -COUNTS)
    noisy[..., looks] = np.where(targets.attribute[..., None] >= 0, right[..., looks], 7.0)
    noisy[..., 1 : 1 + 4 * LINES] = np.where(
        targets.inside[..., None], right[..., 1 : 1 + 4 * LINES], 7.0
    )
    assert float(probes(jnp.asarray(noisy), targets)[0]) == pytest.approx(float(loss), abs=1e-5)
    blank, parts = probes(jnp.zeros_like(right), targets)
    assert float(parts['edges']) == pytest.approx(np.log(LINES), rel=1e-5)
    assert float(parts['objectness']) == pytest.approx(np.log(2), rel=1e-5)
    assert float(parts['place']) == pytest.approx(np.log(rows) + np.log(columns), rel=1e-5)
    assert float(blank) == pytest.approx(
        2 * np.log(2) + np.log(LINES * ATTRIBUTES * COUNTS) + 0.2 * float(parts['place']), rel=1e-5
    )
    slope = jax.grad(lambda v: probes(v, targets)[0])(jnp.asarray(noisy))
    assert np.isfinite(slope).all() and not np.asarray(slope)[~targets.visual].any()
