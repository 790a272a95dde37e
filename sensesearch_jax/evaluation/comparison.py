"""Two runs item by item: which questions flipped, and the paired difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.statistics import paired_difference
from sensesearch_jax.evaluation.summary import COUNTED, cluster

GAINED, LOST, RIGHT, WRONG = OUTCOMES = 'gained', 'lost', 'both right', 'both wrong'


def compare_items(
    first: Sequence[Trajectory], second: Sequence[Trajectory]
) -> list[dict[str, Any]]:
    """The questions that both runs answered, each with both outcomes.

    Args:
        first: trajectories of the run that is compared with.
        second: of the other run.

    Returns:
        Per question 'set', 'id', 'category', 'difficulty', 'question', 'references', 'first' and
        'second' (mean accuracy of the samples that count), 'answers' (of the first sample of each),
        'change' (second − first), 'outcome' (of `OUTCOMES`; with several samples by the larger
        accuracy) and 'cluster'. Those that changed most stand first.
    """
    of_first, of_second = _by_question(first), _by_question(second)
    items = []
    for key in of_first:
        if key not in of_second:
            continue
        question = of_first[key][0].question
        a, b = _mean(of_first[key]), _mean(of_second[key])
        if b != a:
            outcome = GAINED if b > a else LOST
        else:
            outcome = RIGHT if a >= 0.5 else WRONG
        items.append(
            {
                'set': question.source,
                'id': question.id,
                'category': question.category,
                'difficulty': question.difficulty,
                'question': question.text,
                'references': list(question.answers),
                'first': a,
                'second': b,
                'change': b - a,
                'answers': [of_first[key][0].answer, of_second[key][0].answer],
                'outcome': outcome,
                'cluster': cluster(question),
            }
        )
    return sorted(items, key=lambda item: -abs(item['change']))


def compare_sets(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By set: numbers of questions by outcome, and 'difference' {'mean', 'low', 'high'} in accuracy,
    paired, with clusters drawn whole.
    """
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_set.setdefault(item['set'], []).append(item)
    found = {}
    for name, members in by_set.items():
        interval = paired_difference(
            [item['first'] for item in members],
            [item['second'] for item in members],
            clusters=[item['cluster'] for item in members],
        ).to_json()
        found[name] = {
            'questions': len(members),
            **{o: sum(item['outcome'] == o for item in members) for o in OUTCOMES},
            'first': sum(item['first'] for item in members) / len(members),
            'second': sum(item['second'] for item in members) / len(members),
            'difference': {end: interval[end] for end in ('mean', 'low', 'high')},
        }
    return found


def _by_question(trajectories: Sequence[Trajectory]) -> dict[tuple[str, str], list[Trajectory]]:
    found: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in sorted(trajectories, key=lambda t: t.member):
        if trajectory.state in COUNTED:
            key = trajectory.question.source, trajectory.question.id
            found.setdefault(key, []).append(trajectory)
    return found


def _mean(trajectories: Sequence[Trajectory]) -> float:
    return sum(t.reward['accuracy'] for t in trajectories) / len(trajectories)
