"""Demonstrations and the verdicts on them, on disk as they come: a killed run asks for none twice."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.cold_start.threads import in_threads
from sensesearch_jax.cold_start.validation import Verdict
from sensesearch_jax.runtime.journal import Journal

# Of a trajectory that says nothing about its question, and is made anew.
UNMADE = (SampleState.INFRA_FAILED, SampleState.UNSCORABLE, SampleState.TOO_LONG)

# A trajectory, given the question, the turns that it begins with and who notes further ones.
Make = Callable[[Question, Sequence[Turn], Callable[[Turn], None]], Trajectory]
Judge = Callable[[Trajectory], Verdict]


class Judged(NamedTuple):
    """A trajectory and the verdict on it."""

    trajectory: Trajectory
    verdict: Verdict


class Demonstrations:
    """Demonstrations of one process.

    Args:
        folder: of expert.jsonl (trajectories), turns.jsonl (those under way) and verdicts.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.done: dict[str, Judged] = {}
        self._files = contextlib.ExitStack()
        self._trajectories, self._turns, self._verdicts = (
            self._files.enter_context(Journal(folder / name))
            for name in ('expert.jsonl', 'turns.jsonl', 'verdicts.jsonl')
        )
        known = map(Trajectory.from_json, self._trajectories)
        self._made = {t.question.id: t for t in known if t.state not in UNMADE}
        self._begun: dict[str, list[Turn]] = defaultdict(list)
        for line in self._turns:
            self._begun[line['id']].append(Turn.from_json(line['turn']))
        for line in self._verdicts:
            if line['id'] in self._made:
                verdict = Verdict(tuple(line['reasons']), line['why'])
                self.done[line['id']] = Judged(self._made[line['id']], verdict)

    def rest(
        self, questions: Sequence[Question], make: Make, judge: Judge, threads: int
    ) -> Iterator[Judged]:
        """Makes and judges what is missing, as it becomes ready.

        Args:
            questions: to demonstrate.
            make: writes a trajectory.
            judge: gives the verdict on one.
            threads: at work at a time.

        Raises:
            BudgetSpent: some could not be had.
        """

        def work(question: Question) -> Judged:
            trajectory = self._made.get(question.id)
            if trajectory is None:
                begun = list(self._begun.get(question.id, ()))

                def note(turn: Turn) -> None:
                    self._turns.append({'id': question.id, 'turn': turn.to_json()}, sync=False)
                    self._begun[question.id].append(turn)

                trajectory = make(question, begun, note)
                self._trajectories.append(trajectory.to_json(), sync=True)
                if trajectory.state not in UNMADE:
                    self._made[question.id] = trajectory
            verdict = judge(trajectory)
            if verdict.final:
                line = {'id': question.id, 'reasons': verdict.reasons, 'why': verdict.why}
                self._verdicts.append(line, sync=False)
            return Judged(trajectory, verdict)

        left = [q for q in questions if q.id not in self.done]
        for question, judged in in_threads(work, left, threads, lambda j: not j.verdict.final):
            self.done[question.id] = judged
            yield judged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
