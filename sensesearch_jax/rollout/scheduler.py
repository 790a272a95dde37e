"""Drives rollouts: decodes on the device while tools answer on threads, a lane at a time through
its turns.

Between two chunks the scheduler reads finished turns, hands their calls to the tool threads,
appends the answers that have come in, asks for the verdict on whatever has ended, and opens a row
for the next question as soon as all members of one are done. Nothing waits for the slowest tool or
judge but the very end. Several engines take their questions from one queue, each in a thread of its
own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from sensesearch_jax.agent.actions import Answer, FormatError
from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.trajectory import ImageRef, Observation, SampleState, Trajectory, Turn
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.scoring import Scoring
from sensesearch_jax.rollout.task_queue import Task, TaskQueue
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.threads import parallel_map

LOOK_S = 1.0  # seconds between two looks whether to stop, where only tools are waited for


@dataclass(frozen=True)
class RolloutLimits:
    """Limits at which a trajectory ends without an answer.

    Args:
        max_turns: turns of a trajectory.
        turn_tokens: tokens of a turn, which is truncated there.
        max_malformed: turns in a row that are in no valid format; 0 for no such limit.
    """

    max_turns: int
    turn_tokens: int
    max_malformed: int = 0

    def reached(self, turns: Sequence[Turn]) -> bool:
        """Whether a trajectory of these turns has to end."""
        last = turns[-self.max_malformed :] if self.max_malformed else ()
        lost = self.max_malformed and len(last) == self.max_malformed
        return len(turns) >= self.max_turns or bool(
            lost and all(isinstance(t.action, FormatError) for t in last)
        )


@dataclass
class _Lane:
    """A trajectory in flight."""

    trajectory: Trajectory
    position: int  # rotary position of the pending token
    pending: int
    tokens: list[int] = field(default_factory=list)  # of the turn being sampled
    log_probs: list[float] = field(default_factory=list)
    started: float = 0.0


@dataclass
class RolloutStatistics:
    """Costs of a call of `rollout`; times in seconds."""

    seconds: float = 0.0
    # nothing to decode, only tools' answers to wait for; the mean of the engines
    waiting_for_tools: float = 0.0
    # nothing to decode and no tool to wait for, only verdicts; likewise
    waiting_for_judge: float = 0.0
    sampled_tokens: int = 0
    turn_seconds: list[float] = field(default_factory=list)


def rollout(
    tasks: Iterable[Task],
    engines: Engine | Sequence[Engine],
    chat: ChatTokenizer,
    environment: Environment,
    features: FeatureStore,
    limits: RolloutLimits,
    *,
    scorer: Scorer | None,
    tool_threads: int,
    judge_threads: int,
    on_group: Callable[[list[Trajectory]], None] = lambda group: None,
    on_turn: Callable[[Trajectory, Turn], None] = lambda trajectory, turn: None,
    on_tokens: Callable[[Trajectory, list[int]], None] = lambda trajectory, tokens: None,
    to_stop: Callable[[], object] = lambda: False,
) -> tuple[list[list[Trajectory]], RolloutStatistics]:
    """Samples every task's trajectories.

    Args:
        tasks: each with as many seeds as the engines have members, or fewer.
        chat: turns prompts and responses into tokens.
        environment: executes the calls.
        features: of the images; a step of theirs begins, to which the update on the trajectories
            belongs.
        limits: of a trajectory.
        engines: one, or several that work through the tasks side by side (`Engine.twin`), with the
            parameters to sample from.
        scorer: of every trajectory; None leaves them unscored.
        tool_threads: most tool calls at a time.
        judge_threads: most verdicts that are asked for at a time.
        on_group: called with each finished and scored group, in the order in which they finish, one
            call at a time.
        on_turn: called with each finished turn, its observation included; likewise.
        on_tokens: called with the tokens so far of a turn that is being written; likewise.
        to_stop: asked all the time; once it is true, what is not finished is given up.

    Returns:
        the groups in the order of the tasks, and what it cost. Unscored, a state is OK (answered),
        TRUNCATED, INFRA_FAILED or TOO_LONG: its prompt, or a tool's response, is longer than all of
        the engines' capacity.
    """
    engines = [engines] if isinstance(engines, Engine) else list(engines)
    features.begin_step()
    pool = ThreadPoolExecutor(tool_threads, thread_name_prefix='tools')
    judges = ThreadPoolExecutor(judge_threads, thread_name_prefix='judge')
    one_at_a_time = threading.RLock()

    def in_turn(hook: Callable) -> Callable:
        def call(*arguments):
            with one_at_a_time:
                hook(*arguments)

        return call

    queue = TaskQueue(
        list(tasks),
        sum(engine.groups for engine in engines) + features.batch,
        engines[0].prompt_capacity,
        chat,
        environment,
        features,
        pool,
        scorer,
        in_turn(on_group),
    )
    runs = [
        _Rollout(
            queue,
            engine,
            chat,
            environment,
            features,
            limits,
            pool,
            Scoring(scorer, judges),
            in_turn(on_turn),
            in_turn(on_tokens),
            to_stop,
        )
        for engine in engines
    ]
    start = time.monotonic()
    try:
        parallel_map(_Rollout.loop, runs, len(runs), queue.stop)
    finally:
        for threads in (pool, judges):
            threads.shutdown(wait=False, cancel_futures=True)
    parts = [run.statistics for run in runs]
    return queue.groups, RolloutStatistics(
        time.monotonic() - start,
        sum(p.waiting_for_tools for p in parts) / len(parts),
        sum(p.waiting_for_judge for p in parts) / len(parts),
        sum(p.sampled_tokens for p in parts),
        [s for p in parts for s in p.turn_seconds],
    )


@dataclass(eq=False)
class _Rollout:
    """One engine's work."""

    queue: TaskQueue
    engine: Engine
    chat: ChatTokenizer
    environment: Environment
    features: FeatureStore
    limits: RolloutLimits
    pool: ThreadPoolExecutor
    scoring: Scoring
    on_turn: Callable[[Trajectory, Turn], None]
    on_tokens: Callable[[Trajectory, list[int]], None]
    to_stop: Callable[[], object]
    rows: dict[int, int] = field(default_factory=dict)  # row of the engine -> index of the task
    lanes: dict[tuple[int, int], _Lane] = field(default_factory=dict)
    calls: dict[Future, tuple[int, int]] = field(default_factory=dict)
    answers: dict[tuple[int, int], tuple[Observation, list[int]]] = field(default_factory=dict)
    statistics: RolloutStatistics = field(default_factory=RolloutStatistics)

    def loop(self) -> None:
        while self.queue.left or ((self.lanes or self.scoring.waiting) and not self.queue.stopped):
            if self.to_stop():
                self.queue.stop()
                return
            self.queue.fetch()
            self._hand_over()
            self._open()
            self._collect()
            self._append()
            if self._decodable():
                self._decode()
            else:
                self._wait([*self.calls, *self.queue.fetching], self.scoring.pending)

    def _wait(self, calls: Sequence[Future], verdicts: Sequence[Future]) -> None:
        """Until one of them is there, or it is time to look whether to stop."""
        since = time.monotonic()
        if calls or verdicts:
            wait([*calls, *verdicts], timeout=LOOK_S, return_when=FIRST_COMPLETED)
        waited = time.monotonic() - since
        if calls:
            self.statistics.waiting_for_tools += waited
        else:
            self.statistics.waiting_for_judge += waited

    def _hand_over(self) -> None:
        """Gives on the groups whose scores are there."""
        for index in self.scoring.finished():
            self.queue.on_group(self.queue.groups[index])

    def _open(self) -> None:
        """Starts questions in free rows."""
        free = [row for row in range(self.engine.groups) if row not in self.rows]
        # A pass costs the same for one row as for all it has room for: wait for more while there is
        # other work.
        patient = self._decodable() and self.queue.more_to_come
        taken, ahead = self.queue.take(self.engine.prefill_rows if patient else 1, len(free))
        if not taken:
            return
        rows = free[: len(taken)]
        table = self.features.table((image for ready in taken for image in ready.images), ahead)
        positions = self.engine.prefill(
            rows,
            [ready.prompt for ready in taken],
            [[image.sha256 for image in ready.images] for ready in taken],
            table,
        )
        now = time.monotonic()
        for row, (index, task, images, prompt), position in zip(rows, taken, positions):
            self.rows[row] = index
            for g, seed in enumerate(task.seeds):
                trajectory = Trajectory(
                    task.question, g, seed, [], SampleState.TRUNCATED, prompt, [*images], {}, None
                )
                self.queue.groups[index].append(trajectory)
                self.lanes[row, g] = _Lane(trajectory, position, prompt[-1], started=now)

    def _decodable(self) -> list[tuple[int, int]]:
        busy = set(self.calls.values()) | set(self.answers)
        return [lane for lane in self.lanes if lane not in busy]

    def _decode(self) -> None:
        """One chunk for all lanes that are in the middle of a turn; finished turns are acted on."""
        engine, shape = self.engine, (self.engine.groups, self.engine.members)
        active, budget, seeds = (
            np.zeros(shape, bool),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.uint32),
        )
        for lane in self._decodable():
            active[lane] = True
            budget[lane] = min(
                self.limits.turn_tokens - len(self.lanes[lane].tokens), engine.room(lane)
            )
            seeds[lane] = self.lanes[lane].trajectory.seed
        chunk = engine.decode(active, budget, seeds)
        self.statistics.sampled_tokens += int(chunk.count.sum())
        stop = set(self.chat.stop_ids)
        for g in zip(*np.nonzero(active)):
            lane, count = (int(g[0]), int(g[1])), int(chunk.count[g])
            state = self.lanes[lane]
            state.tokens += chunk.tokens[g][:count].tolist()
            state.log_probs += chunk.log_probs[g][:count].tolist()
            if count:
                state.position += count
                state.pending = state.tokens[-1]
            if (
                (state.tokens and state.tokens[-1] in stop)
                or len(state.tokens) >= self.limits.turn_tokens
                or engine.room(lane) <= 0
            ):
                self._finish_turn(lane)
            else:
                self.on_tokens(state.trajectory, state.tokens)

    def _finish_turn(self, lane: tuple[int, int]) -> None:
        state = self.lanes[lane]
        trajectory, now = state.trajectory, time.monotonic()
        self.statistics.turn_seconds.append(now - state.started)
        text = self.chat.turn_text(state.tokens)
        action = self.environment.parse(text).action
        trajectory.turns.append(Turn(state.tokens, state.log_probs, text, action, None, []))
        state.tokens, state.log_probs, state.started = [], [], now
        if isinstance(action, Answer):
            trajectory.state, trajectory.answer = SampleState.OK, action.text
            self._close(lane)
        elif self.limits.reached(trajectory.turns) or self.engine.room(lane) <= 0:
            self._close(lane)  # the state stays TRUNCATED
        else:
            images = indexed_images(trajectory.own_images, trajectory.turns)
            call = self.pool.submit(
                self._act, action, images, state.pending, self.engine.room(lane)
            )
            self.calls[call] = lane

    def _act(self, action, images, pending: int, room: int) -> tuple[Observation, list[int]]:
        """On a tool thread: the call, its response's tokens, its images' patches if they fit."""
        observation = self.environment.execute(action, images)
        shown = [part for part in observation.parts if isinstance(part, ImageRef)]
        failure = next((f for f in map(self.features.unusable, shown) if f), None)
        tokens = [] if failure else self.chat.observation(observation.parts, pending)
        if not failure and not observation.infra_failed and self._fits(tokens, room):
            failure = next((f.message for f in map(self.features.prepare, shown) if f), None)
        if failure:
            self.features.forget(shown)
            return Observation(
                (f'The tool failed (its image is of no use: {failure}).',),
                ok=False,
                kind='tool_error',
                latency_s=observation.latency_s,
                infra_failed=True,
            ), []
        return observation, tokens

    @staticmethod
    def _fits(tokens: Sequence[int], room: int) -> bool:
        """Whether a response enters a lane with so much room, and leaves some for a turn."""
        return len(tokens) + 1 < room

    def _collect(self) -> None:
        """Takes in the tools' answers; a trajectory whose tools failed or that is full ends."""
        for future in [f for f in self.calls if f.done()]:
            lane = self.calls.pop(future)
            state, (observation, tokens) = self.lanes[lane], future.result()
            trajectory, turn = state.trajectory, state.trajectory.turns[-1]
            # A response enters complete or not at all: no image's tokens are ever truncated.
            if observation.infra_failed:
                turn.observation, trajectory.state = observation, SampleState.INFRA_FAILED
                trajectory.failure = ' '.join(
                    part for part in observation.parts if isinstance(part, str)
                )
                self._close(lane)
            elif not self._fits(tokens, self.engine.suffix_capacity):
                trajectory.state = SampleState.TOO_LONG
                trajectory.failure = (
                    f'A response of {observation.kind} of {len(tokens)} tokens can never fit into rollout.suffix_capacity '  # noqa: E501
                    f'{self.engine.suffix_capacity}; raise that, lower max_pixels or show less of each result.'
                )
                self._close(lane)
            elif not self._fits(tokens, self.engine.room(lane)):
                self._close(lane)  # the state stays TRUNCATED
            else:
                turn.observation, turn.observation_tokens = observation, tokens
                trajectory.images += [p for p in observation.parts if isinstance(p, ImageRef)]
                self.answers[lane] = observation, tokens
                self.on_turn(trajectory, turn)

    def _append(self) -> None:
        """Runs waiting tool responses, when enough are there or nothing else is to do."""
        enough = min(self.engine.extend_lanes, max(1, len(self.lanes) // 4))
        if not self.answers or len(self.answers) < enough and self._decodable():
            return
        lanes = list(self.answers)
        refs = [
            [p for p in self.answers[lane][0].parts if isinstance(p, ImageRef)] for lane in lanes
        ]
        table = self.features.table(p for parts in refs for p in parts)
        states = [self.lanes[lane] for lane in lanes]
        positions = self.engine.extend(
            lanes,
            [s.pending for s in states],
            [self.answers[lane][1] for lane in lanes],
            [[p.sha256 for p in parts] for parts in refs],
            [s.position for s in states],
            table,
        )
        for lane, state, position in zip(lanes, states, positions):
            state.position, state.pending = position, self.answers.pop(lane)[1][-1]

    def _close(self, lane: tuple[int, int]) -> None:
        """Ends a lane; the row gets free with its last one."""
        trajectory, index = self.lanes.pop(lane).trajectory, self.rows[lane[0]]
        self.on_turn(trajectory, trajectory.turns[-1])
        self.scoring.ask(index, trajectory)
        if not any(other[0] == lane[0] for other in self.lanes):
            self.scoring.close(self.rows.pop(lane[0]))
