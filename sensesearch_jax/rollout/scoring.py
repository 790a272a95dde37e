"""Scores of finished trajectories, asked on threads of their own: decoding waits for no judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.rewards.scorer import Scorer

NO_ANSWER: Future = Future()
NO_ANSWER.set_result(0.0)


@dataclass(eq=False)
class Group:
    """A question's trajectories under way.

    Args:
        scorer: of them; None leaves rewards and states as they are.
        on_finished: called with them once all have ended and are scored.
        trajectories: by member.
    """

    scorer: Scorer | None
    on_finished: Callable[[list[Trajectory]], None]
    trajectories: list[Trajectory] = field(default_factory=list)

    def finish(self) -> None:
        """Hands the trajectories on."""
        self.on_finished(self.trajectories)


@dataclass
class _Verdicts:
    """The trajectories of a group that have ended so far, and the verdicts on their answers."""

    trajectories: list[Trajectory] = field(default_factory=list)
    verdicts: list[Future[float | ToolFailure]] = field(default_factory=list)
    # by answer: equal ones are asked once
    asked: dict[str, Future[float | ToolFailure]] = field(default_factory=dict)
    complete: bool = False


class Scoring:
    """The groups of one engine that wait for verdicts. Used from the engine's thread; `pool` asks
    the scorers.

    Args:
        pool: its size is the number of verdicts that are asked for at a time.
    """

    def __init__(self, pool: Executor):
        self.pool = pool
        self._groups: dict[Group, _Verdicts] = {}

    def ask(self, group: Group, trajectory: Trajectory) -> None:
        """Asks for the verdict on a trajectory of the group that has just ended."""
        scorer, so_far = group.scorer, self._groups.setdefault(group, _Verdicts())
        answer = scorer.answer(trajectory) if scorer else None
        verdict = NO_ANSWER if answer is None else so_far.asked.get(answer)
        if verdict is None:
            verdict = so_far.asked[answer] = self.pool.submit(scorer.verdict, trajectory, answer)
        so_far.trajectories.append(trajectory)
        so_far.verdicts.append(verdict)

    def close(self, group: Group) -> None:
        """Says that no more trajectories of a group will come."""
        self._groups[group].complete = True

    @property
    def pending(self) -> list[Future]:
        """Verdicts that are not there yet."""
        return [v for found in self._groups.values() for v in found.asked.values() if not v.done()]

    @property
    def waiting(self) -> bool:
        """Whether groups are still to be handed over."""
        return bool(self._groups)

    def finished(self) -> Sequence[Group]:
        """Complete groups whose verdicts have come, each once; their rewards and states are set."""
        done = [
            group
            for group, found in self._groups.items()
            if found.complete and all(v.done() for v in found.verdicts)
        ]
        for group in done:
            found = self._groups.pop(group)
            for trajectory, verdict in zip(found.trajectories, found.verdicts):
                put_score(group.scorer, trajectory, verdict.result())
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
