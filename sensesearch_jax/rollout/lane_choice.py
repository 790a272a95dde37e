"""The choice of the lanes that decode together, where others wait for tools."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from sensesearch_jax.rollout.caches import LaneGrid


def lane_share(platform: str) -> float:
    """Share of a step's time that goes with the number of lanes; on an accelerator most goes into
    reading the parameters.
    """
    return 0.9 if platform == 'cpu' else 0.2


def lanes_to_decode(
    active: Bool[np.ndarray, 'b g'], passed_over: Int[np.ndarray, 'b g'], few: int, share: float
) -> tuple[tuple[np.ndarray, np.ndarray], LaneGrid | None]:
    """The grid of lanes that decodes next.

    The last few lanes should not pay for the caches of all, nor those that go on for those that
    wait.

    Args:
        active: lanes that are in the middle of a turn.
        passed_over: chunks in a row that an active lane had no part in; the longest come first.
        few: so many active lanes, or fewer, decode apart from the others.
        share: of a step's time that goes with the number of lanes.

    Returns:
        an index of the [R, W] lanes of the grid, and the operand of the decode program, which may
        have more rows as padding.
    """
    groups, members = active.shape
    if active.sum() <= few < active.size:
        lanes = np.argwhere(active)
        return (lanes[:, :1], lanes[:, 1:]), LaneGrid.of(lanes, few, groups)

    def gain(width):
        return np.minimum(active.sum(1), width).sum() / (1 - share + share * width / members)

    width = max(widths(groups, members, few), key=gain)
    rows = np.arange(groups)[:, None]
    if width == members:
        return (rows, np.arange(members)[None]), None
    order = np.argsort(np.where(active, -passed_over, 1), axis=1, kind='stable')
    chosen = order[:, :width]
    return (rows, chosen), LaneGrid(None, chosen.astype(np.int32))


def widths(groups: int, members: int, few: int) -> list[int]:
    """Numbers of members of each row that may decode apart from the others: all, half, a quarter, ….

    Args:
        groups: B.
        members: G.
        few: lanes that decode apart anyway; no grid is as small as that.
    """
    found = [members]
    while not found[-1] % 2 and groups * found[-1] // 2 > few:
        found.append(found[-1] // 2)
    return found
