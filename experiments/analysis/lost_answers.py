"""Stages at which a run loses right answers: at the box, the search, the passage or the reading.

    python -m experiments.analysis.lost_answers --run=runs/pocket --policy=sft

reads the trajectories of an evaluation (workdir/evaluation/<policy>.jsonl) and prints two tables:
of questions that need a search, how many come how far; and of those that need a crop first, what
the first box was worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import app, flags

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.rewards.crop_geometry import holds, loose_box
from sensesearch_jax.rewards.evidence import fact_shown, object_named

RUN = flags.DEFINE_string('run', 'runs/pocket', 'workdir of a run that has been evaluated')
POLICY = flags.DEFINE_string('policy', 'sft', 'whose evaluation: base, sft or rl')

BOXES = ('exact', 'holds it', 'shows most of it', 'shows some of it', 'beside it')


def box_kind(box: Sequence[float], target: Sequence[float]) -> str:
    """Kind of a first box by its share of the object, one of BOXES."""
    if tuple(box) == loose_box(target):
        return 'exact'
    if holds(box, target):
        return 'holds it'
    sides = [min(box[i + 2], target[i + 2]) - max(box[i], target[i]) for i in (0, 1)]
    if min(sides) <= 0:
        return 'beside it'
    share = sides[0] * sides[1] / ((target[2] - target[0]) * (target[3] - target[1]))
    return 'shows most of it' if share > 0.5 else 'shows some of it'


def stages(trajectories: Iterable[Trajectory]) -> dict[str, list[int]]:
    """By category of question: asked, object found, fact shown as well, answered right."""
    counts: dict[str, list[int]] = {}
    for t in trajectories:
        if t.question.category == 'perception':
            continue
        there = object_named(t)
        passed = 1, there, there and fact_shown(t), t.reward['accuracy'] == 1
        counts[t.question.category] = [
            a + int(b) for a, b in zip(counts.get(t.question.category, (0,) * 4), passed)
        ]
    return counts


def main(_) -> None:
    path = Path(RUN.value) / 'evaluation' / f'{POLICY.value}.jsonl'
    trajectories = list(read_trajectories(path))
    if not trajectories:
        raise app.UsageError(
            f'{path} holds no trajectories; give the workdir of a finished run and base, sft or rl.'
        )
    print(
        '| questions | asked | object found | and the fact shown | answered right |\n|---|---|---|---|---|'
    )
    for kind, row in sorted(stages(trajectories).items()):
        print(f'| {kind} | ' + ' | '.join(map(str, row)) + ' |')
    boxes, right = Counter(), Counter()
    for t in trajectories:
        if t.question.category == 'search' and t.turns and isinstance(t.turns[0].action, ImageCrop):
            key = box_kind(t.turns[0].action.bbox, t.question.truth['box']), t.question.difficulty
            boxes[key] += 1
            right[key] += t.reward['accuracy'] == 1
    print(
        '\n| first box | '
        + ' | '.join(f'level {level}: answered right' for level in '123')
        + ' |\n|---|---|---|---|'
    )
    for kind in BOXES:
        cells = (f'{right[kind, level]} of {boxes[kind, level]}' for level in '123')
        print(f'| {kind} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    app.run(main)
