"""Scores of finished trajectories, asked on threads of their own: decoding waits for no judge."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.rewards.scorer import Scorer

NO_ANSWER: Future = Future()
NO_ANSWER.set_result(0.0)


@dataclass
class _Group:
    """A question's trajectories so far, and the verdicts on their answers."""

    trajectories: list[Trajectory] = field(default_factory=list)
    verdicts: list[Future[float | ToolFailure]] = field(default_factory=list)
    # by answer: equal ones are asked once
    asked: dict[str, Future[float | ToolFailure]] = field(default_factory=dict)
    complete: bool = False


class Scoring:
    """The groups of one engine that wait for verdicts. Used from the engine's thread; `pool` asks
    the scorer.

    Args:
        scorer: None leaves rewards and states as they are.
        pool: its size is the number of verdicts that are asked for at a time.
    """

    def __init__(self, scorer: Scorer | None, pool: Executor):
        self.scorer, self.pool = scorer, pool
        self._groups: dict[int, _Group] = {}

    def ask(self, index: int, trajectory: Trajectory) -> None:
        """Asks for the verdict on a trajectory of group `index` that has just ended."""
        group = self._groups.setdefault(index, _Group())
        answer = self.scorer.answer(trajectory) if self.scorer else None
        verdict = NO_ANSWER if answer is None else group.asked.get(answer)
        if verdict is None:
            verdict = group.asked[answer] = self.pool.submit(
                self.scorer.verdict, trajectory, answer
            )
        group.trajectories.append(trajectory)
        group.verdicts.append(verdict)

    def close(self, index: int) -> None:
        """Says that no more trajectories of a group will come."""
        self._groups[index].complete = True

    @property
    def pending(self) -> list[Future]:
        """Verdicts that are not there yet."""
        return [v for group in self._groups.values() for v in group.asked.values() if not v.done()]

    @property
    def waiting(self) -> bool:
        """Whether groups are still to be handed over."""
        return bool(self._groups)

    def finished(self) -> Sequence[int]:
        """Complete groups whose verdicts have come, each once; their rewards and states are set."""
        done = [
            i
            for i, group in self._groups.items()
            if group.complete and all(v.done() for v in group.verdicts)
        ]
        for index in done:
            group = self._groups.pop(index)
            for trajectory, verdict in zip(group.trajectories, group.verdicts):
                put_score(self.scorer, trajectory, verdict.result())
        return done


def put_score(scorer: Scorer | None, trajectory: Trajectory, verdict: float | ToolFailure) -> None:
    """Sets reward and state.

    Args:
        scorer: None leaves both as they are.
        trajectory: has ended.
        verdict: on its answer; a failure where the judge could not be asked.
    """
    if scorer is not None:
        trajectory.reward, trajectory.state = scorer.scored(trajectory, verdict)
