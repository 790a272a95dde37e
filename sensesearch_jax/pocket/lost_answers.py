"""Stages at which right answers are lost: at the box, the search, the passage or the reading; and what
looking is worth beside one answer to everything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.pocket.world.question_templates import SEEN_WORDS
from sensesearch_jax.rewards.crop_geometry import holds, loose_box
from sensesearch_jax.rewards.evidence import fact_shown, object_named, right_texts

BOXES = ('exact', 'holds it', 'shows most of it', 'shows some of it', 'beside it')


class Stages(NamedTuple):
    """Questions of a category that need a search, and how many come how far."""

    asked: int
    found: int  # an image search named the object first
    shown: int  # and a text search showed the fact
    right: int


class Seen(NamedTuple):
    """Questions of perception of one kind."""

    asked: int
    commonest: int  # right if every question got the answer that is right most often
    looked: int  # with a crop
    right: int


def stages(
    trajectories: Iterable[Trajectory], kind: Callable[[Question], str] = lambda q: q.category
) -> dict[str, Stages]:
    """Of all but perception, by category or another kind of question."""
    rows: dict[str, list[Stages]] = defaultdict(list)
    for t in trajectories:
        if t.question.category != 'perception':
            there = object_named(t)
            passed = 1, there, there and fact_shown(t), _right(t)
            rows[kind(t.question)].append(Stages(*map(int, passed)))
    return {name: Stages(*map(sum, zip(*of))) for name, of in sorted(rows.items())}


def stages_by_fact(trajectories: Iterable[Trajectory]) -> dict[str, Stages]:
    """The same by the fact that is asked for."""
    return stages(trajectories, lambda question: question.truth.get('field', 'fact'))


def seen(trajectories: Iterable[Trajectory]) -> dict[str, Seen]:
    """By kind of question of perception: colour, shape, count."""
    kinds: dict[str, list[Trajectory]] = defaultdict(list)
    for t in trajectories:
        if t.question.category == 'perception':
            field = t.question.truth.get('field', 'perception')
            kinds[SEEN_WORDS.get(field, field)].append(t)
    return {
        kind: Seen(
            len(of),
            _commonest([t.question for t in of]),
            sum(any(isinstance(turn.action, ImageCrop) for turn in t.turns) for t in of),
            sum(_right(t) for t in of),
        )
        for kind, of in sorted(kinds.items())
    }


def _commonest(questions: Sequence[Question]) -> int:
    """Those that one answer gets right: of multiple choice one letter to all, or one text."""
    ways = (lambda q: q.answers[0], lambda q: right_texts(q)[0])
    return max(max(Counter(way(q).lower() for q in questions).values()) for way in ways)


def _right(trajectory: Trajectory) -> bool:
    return trajectory.reward.get('accuracy') == 1


def first_boxes(
    trajectories: Iterable[Trajectory],
) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """First boxes of searches that begin with a crop, and those answered right, by kind of box and
    difficulty.
    """
    boxes: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for t in trajectories:
        if t.question.category == 'search' and t.turns and isinstance(t.turns[0].action, ImageCrop):
            key = box_kind(t.turns[0].action.bbox, t.question.truth['box']), t.question.difficulty
            boxes[key] += 1
            right[key] += _right(t)
    return boxes, right


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
