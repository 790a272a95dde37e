"""Two settings item by item: which questions flipped, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.benchmarks import label
from sensesearch_jax.evaluation.paper_table import Rows
from sensesearch_jax.evaluation.summary import COUNTED

GAINED, LOST, RIGHT, WRONG = OUTCOMES = 'gained', 'lost', 'both right', 'both wrong'


def compare_items(
    first: Sequence[Trajectory], second: Sequence[Trajectory]
) -> list[dict[str, Any]]:
    """The questions that both settings answered, each with both outcomes.

    Args:
        first: trajectories of all seeds of the setting that is compared with.
        second: of the other one.

    Returns:
        Per question 'set', 'id', 'category', 'difficulty', 'question', 'references', 'first' and
        'second' (mean accuracy of the samples that count, of all seeds), 'answers' (of the first
        sample of each), 'change' (second − first) and 'outcome' (of `OUTCOMES`; with several
        samples by the larger accuracy). Those that changed most stand first.
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
            }
        )
    return sorted(items, key=lambda item: -abs(item['change']))


def outcome_counts(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By set: numbers of questions, in all and by outcome, and the mean accuracy of each run."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_set.setdefault(item['set'], []).append(item)
    return {
        name: {
            'questions': len(members),
            **{o: sum(item['outcome'] == o for item in members) for o in OUTCOMES},
            **{
                run: sum(item[run] for item in members) / len(members)
                for run in ('first', 'second')
            },
        }
        for name, members in by_set.items()
    }


def outcome_rows(items: Sequence[Mapping[str, Any]], first: str, second: str) -> Rows:
    """Numbers of questions that flipped in each set, as a table.

    Args:
        items: of `compare_items`.
        first: name of the setting that is compared with.
        second: name of the other one.
    """
    rows = [['Set', 'Questions', f'{first}, %', f'{second}, %', *OUTCOMES]]
    for name, found in outcome_counts(items).items():
        scores = (f'{100 * found[run]:.2f}' for run in ('first', 'second'))
        counts = (str(found[outcome]) for outcome in OUTCOMES)
        rows.append([label(name), str(found['questions']), *scores, *counts])
    return rows


def flip_rows(items: Sequence[Mapping[str, Any]], first: str, second: str) -> Rows:
    """The questions that flipped, as a table.

    Args:
        items: of `compare_items`.
        first: name of the setting that is compared with.
        second: name of the other one.
    """
    rows = [['Outcome', 'Set', 'Question', 'Reference', first, second, 'Change']]
    for item in items:
        if item['outcome'] in (GAINED, LOST):
            answers = ('–' if answer is None else answer[:200] for answer in item['answers'])
            said = f'{item["question"][:300]} ({item["id"]})'
            reference = ' / '.join(item['references'])[:200]
            change = f'{item["change"]:+.2f}'.replace('-', '−')
            rows.append([item['outcome'], label(item['set']), said, reference, *answers, change])
    return rows


def _by_question(trajectories: Sequence[Trajectory]) -> dict[tuple[str, str], list[Trajectory]]:
    found: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in sorted(trajectories, key=lambda t: t.member):
        if trajectory.state in COUNTED:
            key = trajectory.question.source, trajectory.question.id
            found.setdefault(key, []).append(trajectory)
    return found


def _mean(trajectories: Sequence[Trajectory]) -> float:
    return sum(t.reward['accuracy'] for t in trajectories) / len(trajectories)
