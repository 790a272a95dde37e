"""Dense targets for learning to see from nothing: what every visual token should know of the
objects in it.

A policy that is only given right boxes in words learns to see very late: one sentence per picture,
and no hint where to look. So while the base policy is trained, small linear probes read, at each
visual token of the prompt, the values that one decoder layer offers to later tokens: is an object
here, between which lines of the grid of boxes does it lie, what colour or shape has it, in which
row and column am I, how many objects have there been up to here. The probes are thrown away
afterwards; what they taught the policy to write into its values is what answers need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.rewards.crop_geometry import loose_box

LINES = 11  # 0.0, 0.1 … 1.0
ATTRIBUTES = 9  # colours and shapes an object may have, by number
COUNTS = 10  # of objects: 0 … 9
WEIGHTS = {'objectness': 2.0, 'edges': 1.0, 'place': 0.2, 'attribute': 1.0, 'counted': 1.0}


class VisualTargets(NamedTuple):
    """Per prompt token; all but `visual` mean something on visual tokens alone."""

    visual: Bool[np.ndarray, 'b p']
    inside: Bool[np.ndarray, 'b p']
    # grid lines of the object's loose box: left, top, right, bottom
    edges: Int[np.ndarray, 'b p 4']
    row: Int[np.ndarray, 'b p']
    column: Int[np.ndarray, 'b p']
    attribute: Int[np.ndarray, 'b p']  # of the object, −1 where there is none to tell
    counted: Int[np.ndarray, 'b p']  # objects whose centre lies here or earlier, row by row


def visual_targets(
    boxes: Sequence[Float[np.ndarray, 'n 4']],
    grids: Sequence[tuple[int, int] | None],
    starts: Sequence[int],
    length: int,
    coverage: float = 0.2,
    attributes: Sequence[Int[np.ndarray, ' n']] | None = None,
) -> VisualTargets:
    """Targets of one picture per row.

    Args:
        boxes: objects of each picture, fractions of it.
        grids: rows and columns of merged tokens, None for a row without a picture.
        starts: where in the prompt the picture's tokens begin.
        length: prompt tokens P.
        coverage: share of a token that an object must cover to be `inside`.
        attributes: colour or shape of each object, a number below ATTRIBUTES, or −1.
    """
    b = len(grids)
    out = VisualTargets(
        np.zeros((b, length), bool),
        np.zeros((b, length), bool),
        np.zeros((b, length, 4), np.int32),
        np.zeros((b, length), np.int32),
        np.zeros((b, length), np.int32),
        np.full((b, length), -1, np.int32),
        np.zeros((b, length), np.int32),
    )
    for i, (objects, grid, start) in enumerate(zip(boxes, grids, starts)):
        if grid is None:
            continue
        rows, columns = grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        place = slice(start, start + rows * columns)
        out.visual[i, place] = True
        out.row[i, place], out.column[i, place] = row, column
        if not len(objects):
            continue
        x0, y0, x1, y1 = column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
        wide = np.minimum(x1[:, None], objects[:, 2]) - np.maximum(x0[:, None], objects[:, 0])
        high = np.minimum(y1[:, None], objects[:, 3]) - np.maximum(y0[:, None], objects[:, 1])
        covered = np.maximum(wide, 0) * np.maximum(high, 0) * rows * columns
        # A small object may cover little of any token: the token that holds its centre counts as
        # well.
        centre = (objects[:, :2] + objects[:, 2:]) / 2
        holds = (
            (x0[:, None] <= centre[:, 0])
            & (centre[:, 0] < x1[:, None])
            & (y0[:, None] <= centre[:, 1])
            & (centre[:, 1] < y1[:, None])
        )
        score = covered + holds
        best = score.argmax(1)
        out.inside[i, place] = score.max(1) > coverage
        lines = np.array([loose_box(box) for box in objects]) * (LINES - 1)
        out.edges[i, place] = np.rint(lines)[best]
        out.counted[i, place] = np.minimum(np.cumsum(holds.sum(1)), COUNTS - 1)
        if attributes is not None:
            out.attribute[i, place] = np.where(out.inside[i, place], attributes[i][best], -1)
    return out


class Probes(nnx.Module):
    """Linear read-outs of a layer's values: objectness, loose box, row, column, attribute, count."""

    def __init__(self, width: int, rows: int, columns: int, rngs: nnx.Rngs):
        self.cuts = tuple(np.cumsum([1, 4 * LINES, rows, columns, ATTRIBUTES]).tolist())
        self.read = nnx.Linear(width, self.cuts[-1] + COUNTS, rngs=rngs)

    def __call__(
        self, values: Float[Array, 'b p w'], targets: VisualTargets
    ) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
        """The mean loss over visual tokens, and its parts in nats."""
        here, lines, row, column, attribute, count = jnp.split(
            self.read(values), self.cuts, axis=-1
        )
        seen, inside = (
            x.astype(here.dtype) for x in (targets.visual, targets.visual & targets.inside)
        )

        def mean(x, weight):
            return (x * weight).sum() / jnp.maximum(weight.sum(), 1)

        def pick(logits, i):
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), i[..., None], -1)[..., 0]

        lines = pick(lines.reshape(*lines.shape[:-1], 4, LINES), targets.edges).mean(-1)
        parts = {
            'objectness': mean(jnp.logaddexp(0, here[..., 0]) - inside * here[..., 0], seen),
            'edges': mean(lines, inside),
            'place': mean(pick(row, targets.row) + pick(column, targets.column), seen),
            'attribute': mean(
                pick(attribute, jnp.maximum(targets.attribute, 0)),
                (targets.attribute >= 0).astype(here.dtype),
            ),
            'counted': mean(pick(count, targets.counted), seen),
        }
        return sum(weight * parts[name] for name, weight in WEIGHTS.items()), parts
