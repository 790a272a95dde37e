"""The lanes that decode together: as many as pay, those that waited longest first."""

import numpy as np
import pytest

from sensesearch_jax.rollout.lane_choice import grid_shapes, lanes_to_decode


def chosen_of(active, passed_over, few, platform):
    """Lanes of the grid, by what the host and by what the program takes, and the grid's shape."""
    at, grid = lanes_to_decode(active, passed_over, few, platform)
    lanes = list(zip(*(x.ravel().tolist() for x in np.broadcast_arrays(*at))))
    if grid is None:
        return lanes, active.shape
    rows = np.arange(len(active)) if grid.rows is None else grid.rows
    program = [(int(r), int(m)) for r, of_row in zip(rows, grid.members) for m in of_row]
    assert [lane for lane in program if lane[0] < len(active)] == lanes
    return lanes, grid.members.shape


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('seed', range(20))
def test_a_grid_holds_the_active_lanes_that_waited_longest(platform, seed):
    random = np.random.default_rng(seed)
    groups, members, few = random.integers(1, 7), 2 ** random.integers(0, 4), random.integers(1, 9)
    active = random.random((groups, members)) < random.uniform(0.05, 1)
    active[0, 0] = True
    passed_over = np.where(active, random.integers(0, 4, active.shape), 0)
    lanes, shape = chosen_of(active, passed_over, few, platform)
    assert shape in grid_shapes(groups, members, few, platform)
    assert len(set(lanes)) == len(lanes) <= np.prod(shape)
    taken = np.zeros(active.shape, bool)
    taken[tuple(zip(*lanes))] = True
    assert (taken & active).any()
    areas = active if shape[1] > 1 else [active.ravel()]  # rows of a grid, or all lanes as one
    for mask, of_row, waited in zip(
        areas, taken.reshape(len(areas), -1), passed_over.reshape(len(areas), -1)
    ):
        inside, outside = waited[of_row & mask], waited[~of_row & mask]
        assert not len(outside) or inside.min() >= outside.max()


@pytest.mark.parametrize(
    'platform, count, shape',
    [
        ('cpu', 384, (48, 8)),
        ('cpu', 360, (48, 8)),
        ('cpu', 300, (192, 1)),
        ('cpu', 100, (96, 1)),
        ('cpu', 9, (16, 1)),
        ('tpu', 300, (48, 8)),
        ('tpu', 9, (16, 1)),
    ],
)
def test_as_many_lanes_decode_as_pay(platform, count, shape):
    """Wherever they are; an accelerator, which reads all weights for any number, takes more at once."""
    active = np.zeros(384, bool)
    active[np.random.default_rng(0).permutation(384)[:count]] = True
    active = active.reshape(48, 8)
    lanes, found = chosen_of(active, np.zeros(active.shape, int), 16, platform)
    assert found == shape
    if shape[1] == 1:
        assert all(active[lane] for lane in lanes) and len(lanes) == min(count, shape[0])


def test_accelerators_take_as_many_of_each_row_where_all_rows_wait_alike():
    active = np.zeros((48, 8), bool)
    active[:, [1, 6]] = True
    lanes, shape = chosen_of(active, np.zeros(active.shape, int), 16, 'tpu')
    assert shape == (48, 2) and all(active[lane] for lane in lanes)
