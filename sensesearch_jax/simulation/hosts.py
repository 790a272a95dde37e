"""A host of a simulated run: its engines work through a queue by the scheduler's own rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.recipes.session import rollout_limits
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.lanes import Lanes
from sensesearch_jax.rollout.scoring import Scoring
from sensesearch_jax.rollout.task_queue import TaskQueue
from sensesearch_jax.simulation.clock import Clock, Later, Segment, Threads
from sensesearch_jax.simulation.plans import PlannedGroup
from sensesearch_jax.simulation.stand_ins import (
    PlannedChat,
    PlannedEnvironment,
    PlannedScorer,
    Script,
    TimedEngine,
    TimedFeatures,
)

if TYPE_CHECKING:
    from sensesearch_jax.simulation.run import Pod

MOMENT = 1e-3  # seconds of a pass that has nothing to wait for


@dataclass(eq=False)
class TimedLanes(Lanes):
    """One engine's work, with a time of its own."""

    clock: Clock = field(default_factory=Clock)
    now: float = 0.0
    until: float = math.inf  # no longer than this is waited
    segments: list[Segment] = field(default_factory=list)

    def advance(self, until: float) -> None:
        """One pass of the scheduler's loop, at this engine's time."""
        self.clock.now, self.clock.segments, self.until = self.now, self.segments, until
        self.work()
        self.now = self.clock.now

    def idle(self, kind: str, moment: float) -> None:
        """Time until a moment in which the engine does nothing else."""
        self.clock.now, self.clock.segments = self.now, self.segments
        self.clock.until(kind, moment)
        self.now = self.clock.now

    def _wait(self, calls: Sequence[Later], verdicts: Sequence[Later], news: Future) -> None:
        known = [result.at for result in (*calls, *verdicts)]
        if known or self.unfinished:
            there = min(known, default=self.clock.now + MOMENT)
            self.clock.until('tools' if calls else 'judge', min(there, self.until))


class Host:
    """The engines of a host, their queue, and the groups that they have finished.

    Args:
        pod: the machine that it belongs to.
        policy: of mere shapes.
        engine: whose twins the host has.
        engines: how many.
    """

    def __init__(self, pod: Pod, policy: Policy, engine: TimedEngine, engines: int):
        self.clock, self.script = Clock(pod.compile_s), Script()
        clock, script, room = self.clock, self.script, pod.config.rollout
        self.features = TimedFeatures(
            policy, pod.preprocessor, None, capacity_bytes=1 << 50, batch=room.tower_batch
        )
        self.features.clock, self.features.rates = clock, pod.rates
        self.step_of: list[int] = []  # by index of the task
        self.left: dict[int, int] = {}  # groups of a step that are not finished
        self.finished: dict[int, float] = {}  # the time at which a step's last group was
        environment, self.scorer = PlannedEnvironment(script, clock), PlannedScorer(script, clock)
        chat, tools = PlannedChat(script), Threads(clock, room.tool_threads)
        judges, limits = Threads(clock, room.judge_threads), rollout_limits(pod.config.agent)
        self.asked: list[list[Trajectory]] = []  # the groups, in the order of the tasks
        self.queue = TaskQueue(
            engines * engine.groups + self.features.batch,
            engine.prompt_capacity,
            chat,
            environment,
            self.features,
            tools,
        )
        self.runs = [
            TimedLanes(
                self.queue,
                engine.on(clock, script),
                chat,
                environment,
                self.features,
                limits,
                tools,
                Scoring(judges),
                lambda *turn: None,
                lambda *tokens: None,
                lambda: False,
                lambda: None,
                clock=clock,
            )
            for _ in range(engines)
        ]

    @property
    def now(self) -> float:
        """The time of the engine that is furthest."""
        return max(run.now for run in self.runs)

    def ask(self, step: int, groups: Sequence[PlannedGroup]) -> None:
        """Puts a step's questions into the queue."""
        tasks = []
        for group in groups:
            name = str(len(self.step_of))
            self.step_of.append(step)
            tasks.append(Task(Question(name, ''), self.script.add(name, group)))
        self.left[step] = len(tasks)
        self.asked += self.queue.add(tasks, self.scorer, self._note)

    def groups(self, step: int) -> list[list[Trajectory]]:
        """The trajectories of a step, as far as they have come."""
        return [g for g, of in zip(self.asked, self.step_of) if of == step]

    def sample(self, step: int) -> None:
        """Goes on until a step's groups are finished."""
        while self.left[step]:
            self._next(math.inf)

    def go_on(self, moment: float) -> None:
        """Goes on with whatever there is to do until a moment."""
        while self._next(moment):
            pass

    def idle(self, kind: str, moment: float) -> None:
        """Time until a moment in which no engine does anything else."""
        for run in self.runs:
            run.idle(kind, moment)

    def _next(self, until: float) -> bool:
        """A pass of the engine that is least far; whether there was one."""
        busy = [run for run in self.runs if run.unfinished and run.now < until]
        if busy:
            min(busy, key=lambda run: run.now).advance(until)
        return bool(busy)

    def _note(self, group: list[Trajectory]) -> None:
        step = self.step_of[int(group[0].question.id)]
        self.left[step] -= 1
        self.finished[step] = self.clock.now
