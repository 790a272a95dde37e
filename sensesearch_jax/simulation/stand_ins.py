"""Stand-ins of everything that the scheduler talks to: they follow the plans of trajectories, and take
time on a clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from sensesearch_jax.agent.actions import Answer, TextSearch
from sensesearch_jax.agent.protocol import ParsedTurn
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Question, Trajectory
from sensesearch_jax.model.attention.tpu_decode import BLOCK
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.lane_choice import lanes_to_decode
from sensesearch_jax.rollout.programs import Chunk, TokenRuns
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.simulation.clock import Clock
from sensesearch_jax.simulation.plans import Plan, PlannedGroup, PlannedTurn
from sensesearch_jax.simulation.rates import Rates

STOP, TEXT = 0, -1  # token ids: the end of a turn, and of prompts and responses; others are plans


@dataclass
class Script:
    """The plans of a host's trajectories by number, which stands for a trajectory in seeds and
    tokens, and how far each has come.
    """

    groups: dict[str, PlannedGroup] = field(default_factory=dict)  # by question
    plans: dict[int, Plan] = field(default_factory=dict)
    turn: dict[int, int] = field(default_factory=dict)  # of the plan, that is being written
    written: dict[int, int] = field(default_factory=dict)  # tokens of it

    def add(self, name: str, group: PlannedGroup) -> tuple[int, ...]:
        """The numbers of a question's members."""
        self.groups[name] = group
        numbers = range(len(self.plans) + 1, len(self.plans) + 1 + len(group.members))
        for number, plan in zip(numbers, group.members):
            self.plans[number], self.turn[number], self.written[number] = plan, 0, 0
        return tuple(numbers)

    def now(self, number: int) -> PlannedTurn:
        """The turn that a trajectory writes."""
        return self.plans[number].turns[self.turn[number]]

    def write(self, number: int, most: int) -> tuple[int, bool]:
        """Tokens that a trajectory writes of at most so many, and whether they end its turn."""
        left = self.now(number).tokens - self.written[number]
        count = min(left, most)
        self.written[number] += count
        return count, count == left


@dataclass
class PlannedChat:
    """Tokenizer: texts are numbers of plans, prompts and responses have their lengths alone."""

    script: Script
    stop_ids: tuple[int, ...] = (STOP,)

    def turn_text(self, tokens: Sequence[int]) -> str:
        """The number of the plan that wrote the tokens."""
        return str(tokens[0])

    def prompt(self, system_prompt: str, parts: Sequence[str | ImageRef]) -> list[int]:
        """As many tokens as planned."""
        return [TEXT] * self.script.groups[parts[-1]].prompt

    def observation(self, parts: Sequence[str | ImageRef], pending: int) -> list[int]:
        """Likewise."""
        number, turn = map(int, parts[0].split())
        return [TEXT] * max(1, self.script.plans[number].turns[turn].response)


@dataclass
class PlannedEnvironment:
    """Tools that answer as late as it is planned."""

    script: Script
    clock: Clock
    client: None = None
    system_prompt: str = ''

    def user_parts(self, question: Question, images: Sequence[ImageRef]) -> list[str | ImageRef]:
        """The question's images, and its name."""
        return [*self.script.groups[question.id].images, question.id]

    def parse(self, text: str) -> ParsedTurn:
        """An answer in the last turn, else a call; the next turn begins."""
        number = int(text)
        turn, plan = self.script.turn[number], self.script.plans[number]
        if turn + 1 == len(plan.turns):
            return ParsedTurn('', Answer(plan.answer or ''))
        self.script.turn[number], self.script.written[number] = turn + 1, 0
        return ParsedTurn('', TextSearch(f'{number} {turn}'))

    def execute(self, action: TextSearch, images: Sequence[ImageRef]) -> Observation:
        """The planned response, after the planned time."""
        number, turn = map(int, action.query.split())
        planned = self.script.plans[number].turns[turn]
        self.clock.sleep(planned.tool_s)
        parts = action.query, *planned.images
        return Observation(parts, ok=True, kind='text_search', latency_s=planned.tool_s)


@dataclass
class PlannedScorer:
    """A judge that is as late as it is planned."""

    script: Script
    clock: Clock

    def answer(self, trajectory: Trajectory) -> str | None:
        """The planned answer."""
        return self.script.plans[trajectory.seed].answer

    def verdict(self, trajectory: Trajectory, answer: str) -> float:
        """After the planned time, always the same."""
        self.clock.sleep(self.script.plans[trajectory.seed].judge_s)
        return 1.0

    def scored(self, trajectory: Trajectory, verdict: float) -> tuple[dict[str, float], Any]:
        """The verdict as the reward; the state stays."""
        return {'total': verdict}, trajectory.state


class TimedFeatures(FeatureStore):
    """A store of features whose tower takes time and computes nothing."""

    clock: Clock
    rates: Rates

    def unusable(self, image: ImageRef) -> None:
        """Nothing: planned images are all of use."""

    def _make_patches(self, image: ImageRef) -> None:
        grid = self.preprocessor.grid(image.width, image.height)
        self._patches.setdefault(image.sha256, (None, grid))

    def _compute(self, images: Sequence[ImageRef], *_: Any) -> None:
        names = [image.sha256 for image in images if image.sha256 in self._patches]
        grids = [self._patches.pop(name)[1] for name in names]
        slots, count = max(map(self._padded, grids)), 1 if len(names) == 1 else self.batch
        self.clock.program('vision', (count, slots), self.rates.vision(count, slots))
        for name, grid in zip(names, grids):
            # one number, which counts as all bytes of the features
            size = math.prod(grid) // self.sizes.merge_size**2, self.sizes.feature_width
            features = np.broadcast_to(np.zeros((), np.float16), size)
            self._features[name] = features, grid
            self._bytes += features.nbytes
            self._encoded_in_step.add(name)
        self.images_encoded += len(names)


class TimedEngine(Engine):
    """An engine whose programs take time and compute nothing: tokens come from plans."""

    def __init__(self, policy: Policy, rates: Rates, *, platform: str, **options: Any):
        """As an engine of a policy of mere shapes.

        Args:
            policy: gives the sizes.
            rates: of the programs.
            platform: by which lanes are chosen. On an accelerator decoding reads of each suffix's cache
                the blocks that the lane has written, else of all as much as the longest has.
            options: of `Engine`, but for those of text.
        """
        super().__init__(policy, stop=(STOP,), suppressed=(), **options)
        self.rates, self.platform = rates, platform

    def on(self, clock: Clock, script: Script) -> TimedEngine:
        """A twin that takes a host's time and follows its plans."""
        other = self.twin()
        other.clock, other.script = clock, script
        other._prefill, other._extend = other._timed_prefill, other._timed_extend
        other._decode = other._timed_decode
        return other

    def _timed_prefill(self, parameters, caches, slots, batch: TokenRuns, pending):
        """Takes the place of the compiled program."""
        shape = batch.tokens.shape
        self.clock.program('prefill', shape, self.rates.prefill(*shape))
        return caches

    def _timed_extend(self, parameters, caches, grid, runs: TokenRuns, pending, used: int):
        """Takes the place of the compiled program."""
        shape = *runs.tokens.shape, self.prompt_capacity + used
        self.clock.program('extend', shape, self.rates.extend(*shape))
        return caches

    def _timed_decode(
        self,
        parameters: nnx.State,
        caches: Any,
        grid: Any,
        active: Bool[np.ndarray, 'r w'],
        budget: Int[np.ndarray, 'r w'],
        seeds: Int[np.ndarray, 'r w'],
        used: int,
    ) -> tuple[Any, Chunk]:
        """Takes the place of the compiled program."""
        tokens = np.zeros((*active.shape, self.chunk), np.int32)
        count = np.zeros(active.shape, np.int32)
        for lane in zip(*np.nonzero(active)):
            number = int(seeds[lane])
            n, ends = self.script.write(number, min(int(budget[lane]), self.chunk))
            tokens[lane][:n], count[lane] = number, n
            if ends:
                tokens[lane][n - 1] = STOP
        rows, width = active.shape
        prompt, suffix = self.prompt_capacity, float(used)
        if self.platform != 'cpu':
            written = np.ceil(self.length[self.at] / BLOCK) * BLOCK
            suffix = float(np.minimum(written, used).sum() / (rows * width))
        seconds = self.rates.decode(rows, width, int(count.max()), prompt, suffix)
        self.clock.program('decode', (rows, width, used), seconds)
        return caches, Chunk(tokens, np.zeros(tokens.shape, np.float32), count)

    def _taking_part(self, active):
        self.at, grid = lanes_to_decode(active, self.passed_over, self.extend_lanes, self.platform)
        return self.at, grid

    def _runs(self, runs, images, table, count: int, length: int, starts) -> TokenRuns:
        """Runs of lengths alone."""
        lengths = [*map(len, runs), *[0] * (count - len(runs))]
        valid = np.arange(length) < np.array(lengths)[:, None]
        nothing = np.zeros((count, 0, 0), np.float32)
        none = np.zeros((0, count, length), np.int32)
        return TokenRuns(valid, none, valid, valid, nothing, np.zeros(count, np.int32))
