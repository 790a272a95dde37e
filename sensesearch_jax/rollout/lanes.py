"""One engine's part of a rollout: its lanes, each through its turns.

Between two chunks it reads finished turns, hands their calls to the tool threads, appends the
answers that have come in, asks for the verdict on whatever has ended, and opens a row for the next
question as soon as all members of one are done. Nothing waits for the slowest tool or judge but the
very end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from flax import nnx

from sensesearch_jax.agent.actions import Answer, FormatError
from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.trajectory import ImageRef, Observation, SampleState, Trajectory, Turn
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.groups import Group
from sensesearch_jax.rollout.scoring import Scoring
from sensesearch_jax.rollout.task_queue import TaskQueue
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore

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


class Weights(NamedTuple):
    """Parameters to sample with, and their version."""

    parameters: nnx.State | None
    version: int | None


@dataclass
class _Lane:
    """A trajectory in flight."""

    trajectory: Trajectory
    position: int  # rotary position of the pending token
    pending: int
    tokens: list[int] = field(default_factory=list)  # of the turn being sampled
    log_probs: list[float] = field(default_factory=list)
    weights: Weights | None = None  # that the turn was begun with
    started: float = 0.0


@dataclass
class RolloutStatistics:
    """Costs of a rollout; times in seconds."""

    seconds: float = 0.0
    # nothing to decode, only tools' answers to wait for; the mean of the engines
    waiting_for_tools: float = 0.0
    # nothing to decode and no tool to wait for, only verdicts; likewise
    waiting_for_judge: float = 0.0
    sampled_tokens: int = 0
    tokens_run: int = 0  # through the language model
    turn_seconds: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Lanes:
    """The lanes of one engine.

    Args:
        queue: of the tasks that the engines share out.
        engine: with the weights to begin with.
        chat, environment, features, limits, on_turn, on_tokens, to_stop: as of `scheduler.Stream`.
        pool: calls the tools.
        scoring: of what has ended.
        newest: the weights to sample with, asked all the time; None: those that the engine has.
    """

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
    newest: Callable[[], Weights | None]
    rows: dict[int, Group] = field(default_factory=dict)  # of the engine
    lanes: dict[tuple[int, int], _Lane] = field(default_factory=dict)
    calls: dict[Future, tuple[int, int]] = field(default_factory=dict)
    answers: dict[tuple[int, int], tuple[Observation, list[int]]] = field(default_factory=dict)
    statistics: RolloutStatistics = field(default_factory=RolloutStatistics)

    def __post_init__(self):
        self.weights = Weights(self.engine.parameters, self.engine.version)

    def loop(self) -> None:
        """Works until no task is left and none can come, or the queue is stopped."""
        while self.queue.open or (self.unfinished and not self.queue.stopped):
            if self.to_stop():
                self.queue.stop()
                return
            self.work()

    @property
    def unfinished(self) -> bool:
        """Whether questions are left to take, or trajectories to sample or to score."""
        return self.queue.left or bool(self.lanes or self.scoring.waiting)

    def work(self) -> None:
        """A pass over all that there is to do; a chunk is decoded, or something waited for."""
        news = self.queue.news  # before a look at what it tells of
        self.queue.fetch()
        for group in self.scoring.finished():
            self.queue.end(group)
        self._renew()
        self._open()
        self._collect()
        self._append()
        if self._decodable():
            self._decode()
        else:
            self._wait([*self.calls, *self.queue.fetching], self.scoring.pending, news)

    def _wait(self, calls: Sequence[Future], verdicts: Sequence[Future], news: Future) -> None:
        """Until one of them is there, or it is time to look whether to stop."""
        since = time.monotonic()
        if calls or verdicts or not self.unfinished:
            wait([*calls, *verdicts, news], timeout=LOOK_S, return_when=FIRST_COMPLETED)
        waited = time.monotonic() - since
        if calls:
            self.statistics.waiting_for_tools += waited
        elif verdicts:
            self.statistics.waiting_for_judge += waited

    def _renew(self) -> None:
        """Takes newer weights for all that begins now."""
        newest = self.newest() or self.weights
        if newest is not self.weights:
            self.weights = newest
            self.engine.set_parameters(*newest)

    def turn_seconds(self) -> list[float]:
        """Times of turns, each told once."""
        found = list(self.statistics.turn_seconds)
        del self.statistics.turn_seconds[: len(found)]  # the engine's thread may have added more
        return found

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
        images = (image for ready in taken for image in ready.images)
        table = self.features.table(images, ahead, self.engine.mesh)
        positions = self.engine.prefill(
            rows,
            [ready.prompt for ready in taken],
            [[image.sha256 for image in ready.images] for ready in taken],
            table,
        )
        now = time.monotonic()
        for row, (group, task, images, prompt), position in zip(rows, taken, positions):
            self.rows[row] = group
            for g, seed in enumerate(task.seeds):
                member, state = len(group.trajectories), SampleState.TRUNCATED
                trajectory = Trajectory(
                    task.question, member, seed, [], state, prompt, [*images], {}, None
                )
                group.trajectories.append(trajectory)
                self.lanes[row, g] = _Lane(trajectory, position, prompt[-1], started=now)

    def _decodable(self) -> list[tuple[int, int]]:
        busy = set(self.calls.values()) | set(self.answers)
        return [lane for lane in self.lanes if lane not in busy]

    def _decode(self) -> None:
        """One chunk for all lanes that are in the middle of a turn, each by the weights that it began
        the turn with.
        """
        by_version: dict[int | None, list[tuple[int, int]]] = {}
        for lane in self._decodable():
            state = self.lanes[lane]
            if not state.tokens:
                state.weights = self.weights
            by_version.setdefault(state.weights.version, []).append(lane)
        for lanes in by_version.values():
            self._decode_chunk(lanes)

    def _decode_chunk(self, lanes: Sequence[tuple[int, int]]) -> None:
        """A chunk for lanes of the same weights; finished turns are acted on."""
        engine, shape = self.engine, (self.engine.groups, self.engine.members)
        active = np.zeros(shape, bool)
        budget, seeds = np.zeros(shape, np.int32), np.zeros(shape, np.uint32)
        for lane in lanes:
            active[lane] = True
            budget[lane] = min(
                self.limits.turn_tokens - len(self.lanes[lane].tokens), engine.room(lane)
            )
            seeds[lane] = self.lanes[lane].trajectory.seed
        chunk = engine.decode(active, budget, seeds, self.lanes[lanes[0]].weights.parameters)
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
        turn = Turn(state.tokens, state.log_probs, text, action, None, [], state.weights.version)
        trajectory.turns.append(turn)
        state.tokens, state.log_probs, state.weights, state.started = [], [], None, now
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
        images = (p for parts in refs for p in parts)
        table = self.features.table(images, mesh=self.engine.mesh)
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
        trajectory, group = self.lanes.pop(lane).trajectory, self.rows[lane[0]]
        self.on_turn(trajectory, trajectory.turns[-1])
        self.scoring.ask(group, trajectory)
        if not any(other[0] == lane[0] for other in self.lanes):
            self.scoring.close(self.rows.pop(lane[0]))
