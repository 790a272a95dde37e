"""Questions to sample for, and their trajectories under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.rewards.scorer import Scorer


@dataclass(frozen=True)
class Task:
    """One question to sample G trajectories for.

    Attributes:
        question: asked of all.
        seeds: of each member.
        at_first: members that are sampled at first, and again as long as the group has not enough
            (`TaskQueue.enough`); 0: all at once.
    """

    question: Question
    seeds: tuple[int, ...]
    at_first: int = 0

    def parts(self) -> list[Task]:
        """Tasks of the members that are sampled together, one after another."""
        size = self.at_first or max(len(self.seeds), 1)
        starts = range(0, len(self.seeds), size) or [0]
        return [Task(self.question, self.seeds[start : start + size]) for start in starts]


@dataclass(eq=False)
class Group:
    """A question's trajectories under way.

    Args:
        scorer: of them; None leaves rewards and states as they are.
        on_finished: called with them once all have ended and are scored.
        later: members that are sampled only if these do not do.
        trajectories: by member.
        ended: those that have, each with the verdict on its answer.
        asked: verdicts by answer: equal ones are asked once.
        complete: whether no more trajectories will come.
    """

    scorer: Scorer | None
    on_finished: Callable[[list[Trajectory]], None]
    later: deque[Task] = field(default_factory=deque)
    trajectories: list[Trajectory] = field(default_factory=list)
    ended: list[tuple[Trajectory, Future[float | ToolFailure]]] = field(default_factory=list)
    asked: dict[str, Future[float | ToolFailure]] = field(default_factory=dict)
    complete: bool = False

    def next_part(self) -> Task:
        """The next members, for which the group opens again."""
        self.ended.clear()
        self.complete = False
        return self.later.popleft()

    def finish(self) -> None:
        """Hands the trajectories on."""
        self.on_finished(self.trajectories)
