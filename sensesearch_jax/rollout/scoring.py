"""Scores of finished trajectories, asked on threads of their own: decoding waits for no judge."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.groups import Group

NO_ANSWER: Future = Future()
NO_ANSWER.set_result(0.0)


class Scoring:
    """The groups of one engine that wait for verdicts. Used from the engine's thread; `pool` asks
    the scorers.

    Args:
        pool: its size is the number of verdicts that are asked for at a time.
    """

    def __init__(self, pool: Executor):
        self.pool = pool
        self._groups: dict[Group, None] = {}  # in the order in which they began to end

    def ask(self, group: Group, trajectory: Trajectory) -> None:
        """Asks for the verdict on a trajectory of the group that has just ended."""
        self._groups[group] = None
        scorer = group.scorer
        answer = scorer.answer(trajectory) if scorer else None
        verdict = NO_ANSWER if answer is None else group.asked.get(answer)
        if verdict is None:
            verdict = group.asked[answer] = self.pool.submit(scorer.verdict, trajectory, answer)
        group.ended.append((trajectory, verdict))

    def close(self, group: Group) -> None:
        """Says that no more trajectories of a group will come."""
        group.complete = True

    @property
    def pending(self) -> list[Future]:
        """Verdicts that are not there yet."""
        return [v for group in self._groups for v in group.asked.values() if not v.done()]

    @property
    def waiting(self) -> bool:
        """Whether groups are still to be handed over."""
        return bool(self._groups)

    def finished(self) -> Sequence[Group]:
        """Complete groups whose verdicts have come, each once; their rewards and states are set."""
        done = [g for g in self._groups if g.complete and all(v.done() for _, v in g.ended)]
        for group in done:
            del self._groups[group]
            for trajectory, verdict in group.ended:
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
