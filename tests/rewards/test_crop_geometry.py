"""Loose boxes: on the grid, around what they hold, no larger than needed, the same when written and
read."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sensesearch_jax.rewards.crop_geometry import loose_box, write_box

fractions = st.floats(0, 1)


@st.composite
def inner_boxes(draw):
    x0, x1 = sorted((draw(fractions), draw(fractions)))
    y0, y1 = sorted((draw(fractions), draw(fractions)))
    return x0, y0, x1, y1


@given(inner_boxes())
def test_holds_with_margin_and_no_more_than_a_step(box):
    loose = loose_box(box)
    assert all(
        0 <= v <= 1 and round(v * 10) == v * 10 or abs(v * 10 - round(v * 10)) < 1e-5 for v in loose
    )
    for i in (0, 1):
        assert loose[i] < loose[i + 2]
        assert loose[i] == 0 or box[i] - 0.13 - 1e-6 < loose[i] <= box[i] - 0.03 + 1e-6
        assert (
            loose[i + 2] == 1 or box[i + 2] + 0.03 - 1e-6 <= loose[i + 2] < box[i + 2] + 0.13 + 1e-6
        )


@given(inner_boxes(), st.sampled_from([0.05, 0.1, 0.25]), st.floats(0, 0.2))
def test_any_grid_and_margin(box, step, margin):
    loose = loose_box(box, margin, step)
    for i in (0, 1):
        assert 0 <= loose[i] <= max(0, box[i] - margin) + 1e-6
        assert min(1, box[i + 2] + margin) - 1e-6 <= loose[i + 2] <= 1
        assert (
            loose[i] >= box[i] - margin - step - 1e-6
            and loose[i + 2] <= box[i + 2] + margin + step + 1e-6
        )


@given(inner_boxes(), inner_boxes())
def test_a_box_within_another_has_its_loose_box_within_the_others(one, other):
    union = (*map(min, one[:2], other[:2]), *map(max, one[2:], other[2:]))
    inner, outer = loose_box(one), loose_box(union)
    assert (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and outer[2] >= inner[2]
        and outer[3] >= inner[3]
    )


@given(inner_boxes())
def test_written_and_read_it_is_the_same(box):
    loose = loose_box(box)
    text = write_box(loose)
    assert all(abs(a - b) < 1e-6 for a, b in zip(json.loads(text), loose, strict=True))
    assert len(text) == len('[0.1, 0.2, 0.3, 0.4]')


def test_on_a_grid_line():
    """A box whose margin ends on a line is not moved one further by rounding."""
    assert loose_box((0.23, 0.33, 0.47, 0.57)) == (0.2, 0.3, 0.5, 0.6)
    assert loose_box((0.0, 0.0, 1.0, 1.0)) == (0.0, 0.0, 1.0, 1.0)
    assert write_box((0.0, 0.3, 0.5, 1.0)) == '[0.0, 0.3, 0.5, 1.0]'
