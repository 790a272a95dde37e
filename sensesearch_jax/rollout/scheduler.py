"""Drives rollouts: decodes on the device while tools answer on threads, a lane at a time through its turns.

Between two chunks the scheduler reads finished turns, hands their calls to the tool threads, appends the answers that
have come in, and opens a row for the next question as soon as all members of one are done. Nothing waits for the
slowest but the very end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from sensesearch_jax.agent.actions import Answer, FormatError
from sensesearch_jax.agent.client import ToolFailure
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.protocol import user_text
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Question, SampleState, Trajectory, Turn
from sensesearch_jax.inputs.template import ChatTokenizer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.features import FeatureStore


@dataclass(frozen=True)
class Task:
    """One question to sample G trajectories for; `seeds` has one seed per member."""

    question: Question
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RolloutLimits:
    """When a trajectory ends without an answer; a turn is cut at `turn_tokens` tokens.

    Args:
        max_turns: it ends after so many turns,
        max_malformed: or after so many in a row that are in no valid format; 0: not for that.
    """

    max_turns: int
    turn_tokens: int
    max_malformed: int = 0

    def reached(self, turns: Sequence[Turn]) -> bool:
        """Whether a trajectory of these turns has to end."""
        last = turns[-self.max_malformed:] if self.max_malformed else ()
        lost = self.max_malformed and len(last) == self.max_malformed
        return len(turns) >= self.max_turns or bool(lost and all(isinstance(t.action, FormatError) for t in last))


@dataclass
class _Lane:
    """A trajectory in flight."""

    trajectory: Trajectory
    position: int  # rotary position of the pending token
    pending: int
    tokens: list[int] = field(default_factory=list)  # of the turn being sampled
    log_probs: list[float] = field(default_factory=list)
    raw_log_probs: list[float] = field(default_factory=list)
    started: float = 0.0


@dataclass
class RolloutStatistics:
    """What a call of `rollout` cost; times in seconds."""

    seconds: float = 0.0
    waiting_for_tools: float = 0.0  # nothing to decode, only answers to wait for
    sampled_tokens: int = 0
    turn_seconds: list[float] = field(default_factory=list)


def rollout(tasks: Iterable[Task], engine: Engine, chat: ChatTokenizer, environment: Environment, features: FeatureStore,
            limits: RolloutLimits, *, tool_threads: int = 8,
            on_group: Callable[[list[Trajectory]], None] = lambda group: None,
            on_turn: Callable[[Trajectory, Turn], None] = lambda trajectory, turn: None,
            ) -> tuple[list[list[Trajectory]], RolloutStatistics]:
    """Samples every task's trajectories.

    Args:
        tasks: each with as many seeds as the engine has members, or fewer.
        engine: with the parameters to sample from.
        on_group: called with each finished group, in the order in which they finish.
        on_turn: called with each finished turn, its observation included.
    Returns:
        the groups in the order of the tasks, unscored: state OK (answered), TRUNCATED or INFRA_FAILED; and what
        it cost.
    """
    run = _Rollout(list(tasks), engine, chat, environment, features, limits, tool_threads, on_group, on_turn)
    try:
        return run.loop(), run.statistics
    finally:
        run.pool.shutdown(wait=False, cancel_futures=True)


class _Rollout:
    def __init__(self, tasks: Sequence[Task], engine, chat, environment, features, limits, tool_threads, on_group,
                 on_turn):
        self.engine, self.chat, self.environment, self.features = engine, chat, environment, features
        self.limits, self.on_group, self.on_turn = limits, on_group, on_turn
        self.groups: list[list[Trajectory]] = [[] for _ in tasks]
        self.waiting = deque(enumerate(tasks))
        self.opening: dict[Future, tuple[int, Task]] = {}  # first images on their way
        self.opened: deque[tuple[int, Task, ImageRef]] = deque()
        self.rows: dict[int, int] = {}  # row of the engine -> index of the task
        self.lanes: dict[tuple[int, int], _Lane] = {}
        self.calls: dict[Future, tuple[int, int]] = {}
        self.answers: dict[tuple[int, int], tuple[Observation, list[int]]] = {}
        self.pool = ThreadPoolExecutor(tool_threads, thread_name_prefix='tools')
        self.statistics = RolloutStatistics()

    def loop(self) -> list[list[Trajectory]]:
        start = time.monotonic()
        while self.waiting or self.opening or self.opened or self.lanes:
            self._fetch()
            self._open()
            self._collect()
            self._append()
            if self._decodable():
                self._decode()
            elif self.calls or self.opening:
                since = time.monotonic()
                wait([*self.calls, *self.opening], return_when=FIRST_COMPLETED)
                self.statistics.waiting_for_tools += time.monotonic() - since
        self.statistics.seconds = time.monotonic() - start
        return self.groups

    def _fetch(self) -> None:
        """Uploads and prepares the pictures of the next questions ahead of their turn."""
        ahead = self.engine.groups + self.features.batch  # enough to fill a pass through the tower with those to come
        while self.waiting and len(self.opening) + len(self.opened) < ahead:
            index, task = self.waiting.popleft()
            self.opening[self.pool.submit(self._first_image, task.question)] = index, task
        for future in [f for f in self.opening if f.done()]:
            index, task = self.opening.pop(future)
            image = future.result()
            if isinstance(image, ToolFailure):
                self.groups[index] = [
                    Trajectory(task.question, g, seed, [], SampleState.INFRA_FAILED, [], [], {}, None)
                    for g, seed in enumerate(task.seeds)]
                self.on_group(self.groups[index])
            else:
                self.opened.append((index, task, image))

    def _first_image(self, question: Question) -> ImageRef | ToolFailure:
        image = self.environment.client.upload(question.image)
        return image if isinstance(image, ToolFailure) else self.features.prepare(image) or image

    def _open(self) -> None:
        """Starts questions in free rows."""
        free = [row for row in range(self.engine.groups) if row not in self.rows]
        ready = min(len(free), len(self.opened))
        # A pass costs the same for one row as for all it has room for: wait for more while there is other work.
        if not ready or ready < self.engine.prefill_rows and self._decodable() and (self.waiting or self.opening):
            return
        batch = [(row, *self.opened.popleft()) for row in free[:ready]]
        table = self.features.table((image for *_, image in batch), (image for *_, image in self.opened))
        prompts = [self.chat.prompt(self.environment.system_prompt, [image, user_text(task.question)])
                   for _, _, task, image in batch]
        positions = self.engine.prefill([row for row, *_ in batch], prompts,
                                        [[image.sha256] for *_, image in batch], table)
        now = time.monotonic()
        for (row, index, task, image), prompt, position in zip(batch, prompts, positions):
            self.rows[row] = index
            for g, seed in enumerate(task.seeds):
                trajectory = Trajectory(task.question, g, seed, [], SampleState.TRUNCATED, prompt, [image], {}, None)
                self.groups[index].append(trajectory)
                self.lanes[row, g] = _Lane(trajectory, position, prompt[-1], started=now)

    def _decodable(self) -> list[tuple[int, int]]:
        busy = set(self.calls.values()) | set(self.answers)
        return [lane for lane in self.lanes if lane not in busy]

    def _decode(self) -> None:
        """One chunk for all lanes that are in the middle of a turn; finished turns are acted on."""
        engine, shape = self.engine, (self.engine.groups, self.engine.members)
        active, budget, seeds = np.zeros(shape, bool), np.zeros(shape, np.int32), np.zeros(shape, np.uint32)
        for lane in self._decodable():
            active[lane] = True
            budget[lane] = min(self.limits.turn_tokens - len(self.lanes[lane].tokens), engine.room(lane))
            seeds[lane] = self.lanes[lane].trajectory.seed
        chunk = engine.decode(active, budget, seeds)
        self.statistics.sampled_tokens += int(chunk.count.sum())
        stop = set(self.chat.stop_ids)
        for g in zip(*np.nonzero(active)):
            lane, count = (int(g[0]), int(g[1])), int(chunk.count[g])
            state = self.lanes[lane]
            state.tokens += chunk.tokens[g][:count].tolist()
            state.log_probs += chunk.log_probs[g][:count].tolist()
            state.raw_log_probs += chunk.raw_log_probs[g][:count].tolist()
            if count:
                state.position += count
                state.pending = state.tokens[-1]
            if (state.tokens and state.tokens[-1] in stop) or len(state.tokens) >= self.limits.turn_tokens \
                    or engine.room(lane) <= 0:
                self._finish_turn(lane)

    def _finish_turn(self, lane: tuple[int, int]) -> None:
        state = self.lanes[lane]
        trajectory, now = state.trajectory, time.monotonic()
        self.statistics.turn_seconds.append(now - state.started)
        text = self.chat.decode(state.tokens)
        action = self.environment.parse(text).action
        trajectory.turns.append(Turn(state.tokens, state.log_probs, state.raw_log_probs, text, action, None, []))
        state.tokens, state.log_probs, state.raw_log_probs, state.started = [], [], [], now
        if isinstance(action, Answer):
            trajectory.state, trajectory.answer = SampleState.OK, action.text
            self._close(lane)
        elif self.limits.reached(trajectory.turns) or self.engine.room(lane) <= 0:
            self._close(lane)  # the state stays TRUNCATED
        else:
            images = indexed_images(trajectory.images[0], trajectory.turns)
            self.calls[self.pool.submit(self._act, action, images)] = lane

    def _act(self, action, images) -> Observation:
        """On a tool thread: the call, and the patches of every image in its answer."""
        observation = self.environment.execute(action, images)
        for part in observation.parts:
            if isinstance(part, ImageRef) and self.features.prepare(part):
                return Observation(('The tool failed (its image is gone).',), ok=False, kind='tool_error',
                                   latency_s=observation.latency_s, infra_failed=True)
        return observation

    def _collect(self) -> None:
        """Takes in the tools' answers; a trajectory whose tools failed, or that has no room for more, ends."""
        for future in [f for f in self.calls if f.done()]:
            lane = self.calls.pop(future)
            state, observation = self.lanes[lane], future.result()
            turn = state.trajectory.turns[-1]
            tokens = self.chat.observation(observation.parts, state.pending)
            # A response enters whole or not at all: nothing is ever cut inside an image's tokens.
            if observation.infra_failed or len(tokens) + 1 >= self.engine.room(lane):
                state.trajectory.state = (SampleState.INFRA_FAILED if observation.infra_failed
                                          else SampleState.TRUNCATED)
                turn.observation = observation if observation.infra_failed else None
                self._close(lane)
                continue
            turn.observation, turn.observation_tokens = observation, tokens
            state.trajectory.images += [p for p in observation.parts if isinstance(p, ImageRef)]
            self.answers[lane] = observation, tokens
            self.on_turn(state.trajectory, turn)

    def _append(self) -> None:
        """Runs waiting tool responses, when enough are there or nothing else is to do."""
        enough = min(self.engine.extend_lanes, max(1, len(self.lanes) // 4))
        if not self.answers or len(self.answers) < enough and self._decodable():
            return
        lanes = list(self.answers)
        refs = [[p for p in self.answers[lane][0].parts if isinstance(p, ImageRef)] for lane in lanes]
        table = self.features.table(p for parts in refs for p in parts)
        states = [self.lanes[lane] for lane in lanes]
        positions = self.engine.extend(
            lanes, [s.pending for s in states], [self.answers[lane][1] for lane in lanes],
            [[p.sha256 for p in parts] for parts in refs], [s.position for s in states], table)
        for lane, state, position in zip(lanes, states, positions):
            state.position, state.pending = position, self.answers.pop(lane)[1][-1]

    def _close(self, lane: tuple[int, int]) -> None:
        """Ends a lane; the row gets free with its last one."""
        trajectory = self.lanes.pop(lane).trajectory
        self.on_turn(trajectory, trajectory.turns[-1])
        if not any(other[0] == lane[0] for other in self.lanes):
            index = self.rows.pop(lane[0])
            self.on_group(self.groups[index])
