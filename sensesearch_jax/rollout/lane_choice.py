"""The choice of the lanes that decode together, where others wait for tools."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from sensesearch_jax.rollout.caches import LaneGrid


def lanes_to_decode(
    active: Bool[np.ndarray, 'b g'], passed_over: Int[np.ndarray, 'b g'], few: int, platform: str
) -> tuple[tuple[np.ndarray, np.ndarray], LaneGrid | None]:
    """The grid of lanes that decodes next: the one that gives most tokens for its time.

    The last few lanes should not pay for the caches of all, nor those that go on for those that
    wait.

    Args:
        active: lanes that are in the middle of a turn.
        passed_over: chunks in a row that an active lane had no part in; the longest come first.
        few: lanes of the smallest grid.
        platform: that decodes.

    Returns:
        an index of the [R, W] lanes of the grid, and the operand of the decode program, which may
        have more rows as padding.
    """
    groups, members = active.shape
    share = _lane_share(platform)

    def gain(shape):
        rows, width = shape
        filled = active.sum() if width == 1 else np.minimum(active.sum(1), width).sum()
        return min(filled, rows * width) / (1 - share + share * rows * width / active.size)

    rows, width = max(grid_shapes(groups, members, few, platform), key=gain)
    order = np.where(active, -passed_over, 1)  # the first come first
    if rows * width == active.size:
        return (np.arange(groups)[:, None], np.arange(members)[None]), None
    if width > 1:
        chosen = np.argsort(order, axis=1, kind='stable')[:, :width]
        return (np.arange(groups)[:, None], chosen), LaneGrid(None, chosen.astype(np.int32))
    count = min(rows, active.sum())
    chosen = np.argsort(order, axis=None, kind='stable')[:count]
    lanes = np.column_stack(np.unravel_index(np.sort(chosen), active.shape))
    return (lanes[:, :1], lanes[:, 1:]), LaneGrid.of(lanes, rows, groups)


def grid_shapes(groups: int, members: int, few: int, platform: str) -> list[tuple[int, int]]:
    """Rows and width of the grids that may decode: all lanes, the half of them, a quarter, … and few.

    On a CPU a lane's time is its own, and its prompt is short: any lanes go together, each as a row. An
    accelerator reads a prompt once for all members of its row: it takes as many of each, but for
    the last few.

    Args:
        groups: B.
        members: G.
        few: lanes of the smallest grid.
        platform: that decodes.
    """
    every, found = groups * members, [(groups, members)]
    if platform == 'cpu':
        lanes = every
        while (lanes := lanes // 2) > few:
            found.append((lanes, 1))
    else:
        width = members
        while not width % 2 and groups * (width := width // 2) > few:
            found.append((groups, width))
    return found if few >= every else [*found, (few, 1)]


def _lane_share(platform: str) -> float:
    """Share of a step's time that goes with the number of lanes; on an accelerator most goes into
    reading the parameters.
    """
    return 0.9 if platform == 'cpu' else 0.2
