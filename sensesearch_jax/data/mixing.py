"""The order in which questions of several sources are asked: exact, and the same at every start."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import grain

from sensesearch_jax.agent.trajectory import Question


@dataclass(frozen=True)
class Pool:
    """The questions of a source.

    Args:
        source: its name.
        questions: in the source's order.
        weight: share in the mix; 0: as many as it has.
    """

    source: str
    questions: list[Question]
    weight: float


def unique_ids(pools: Sequence[Pool]) -> list[Pool]:
    """The pools; a question whose id another source has too gets its source's name before it."""
    owners: dict[str, set[int]] = {}
    for number, pool in enumerate(pools):
        for question in pool.questions:
            owners.setdefault(question.id, set()).add(number)

    def named(pool: Pool, number: int, question: Question) -> Question:
        if len(owners[question.id]) == 1:
            return question
        same = sum(other.source == pool.source for other in pools)
        prefix = pool.source if same == 1 else f'{pool.source}.{number}'
        return replace(question, id=f'{prefix}/{question.id}')

    return [
        replace(pool, questions=[named(pool, number, question) for question in pool.questions])
        for number, pool in enumerate(pools)
    ]


def in_turn(pools: Sequence[Pool]) -> list[Question]:
    """Every question once: sources one after another or, where they have weights, by their shares
    as long as they last.
    """
    if not _weighted(pools):
        return [question for pool in pools for question in pool.questions]
    left = [deque(pool.questions) for pool in pools]
    schedule, order, place = _schedule(pools), [], 0
    while any(left):
        chosen, place = schedule[place], place + 1
        if left[chosen]:
            order.append(left[chosen].popleft())
    return order


def step_questions(pools: Sequence[Pool], size: int, seed: int) -> Callable[[int], list[Question]]:
    """The questions of each step of a training: of each source shuffled, pass after pass, each pass
    in another order, and sources by their weights.

    A question of weight w is in w passes of its source out of one on average: two in a row of three
    for 2/3, each one twice for 2. No step asks a question twice, unless it asks more than there
    are: where a step ends one pass and begins the next, those that it has asked come later.

    Args:
        pools: of all sources; those without weights are one pool.
        size: questions of a step.
        seed: of the shuffles.

    Returns:
        A function from a step, from 0, to its questions.
    """
    if not _weighted(pools):
        pools = [Pool('', [question for pool in pools for question in pool.questions], 1.0)]
    schedule = _schedule(pools)
    streams = [_Stream(pool.questions, seed) for pool in pools]
    steps: list[list[Question]] = []

    def asked(step: int) -> list[Question]:
        while len(steps) <= step:
            first = len(steps) * size
            sources = [schedule[first + i] for i in range(size)] if len(pools) > 1 else [0] * size
            drawn = [
                iter(stream.take(sources.count(number))) for number, stream in enumerate(streams)
            ]
            steps.append([next(drawn[number]) for number in sources])
        return steps[step]

    return asked


class _Stream:
    """The questions of one source, pass after pass."""

    def __init__(self, questions: Sequence[Question], seed: int):
        self.questions, self.seed = questions, seed
        self.passes = 0
        self.queue: deque[int] = deque()

    def take(self, count: int) -> list[Question]:
        """The next questions of a step, all different as long as there are others."""
        chosen: list[int] = []
        asked: set[int] = set()
        later: list[int] = []
        news = True  # since the pass began
        while len(chosen) < count:
            if not self.queue:
                if later and not news:  # each was asked: they begin anew
                    asked = set()
                    self.queue.extend(later)
                    later = []
                else:
                    self._next_pass()
                news = False
                continue
            item = self.queue.popleft()
            if item in asked:
                later.append(item)
                continue
            asked.add(item)
            chosen.append(item)
            news = True
        self.queue.extendleft(reversed(later))
        return [self.questions[i] for i in chosen]

    def _next_pass(self) -> None:
        number, self.passes = self.passes, self.passes + 1
        items = [
            i
            for i, question in enumerate(self.questions)
            for _ in range(_up_to(question.weight, number + 1) - _up_to(question.weight, number))
        ]
        shuffled = grain.MapDataset.source(items).seed(self.seed).shuffle() if items else []
        # The index says which pass it is, and with it which shuffle.
        self.queue.extend(shuffled[number * len(items) + i] for i in range(len(items)))


def _up_to(weight: float, passes: int) -> int:
    """Number of times that a question has been in so many passes."""
    return math.floor(weight * passes + 1e-9)


def _weighted(pools: Sequence[Pool]) -> bool:
    return len(pools) > 1 and all(pool.weight for pool in pools)


def _schedule(pools: Sequence[Pool]) -> grain.MapDataset:
    """The number of the source whose turn it is, place by place: in exact shares."""
    numbers = [grain.MapDataset.source([number]).repeat() for number in range(len(pools))]
    return grain.MapDataset.mix(numbers, [pool.weight or 1.0 for pool in pools])
