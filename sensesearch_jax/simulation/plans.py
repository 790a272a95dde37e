"""Plans of trajectories: how much each writes, calls and reads; drawn, or those of a recorded run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import ImageRef, Trajectory
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.recipes.session import read_trajectories

PICTURES = (3840, 2160), (2160, 3840), (3000, 2760), (4096, 2000)  # pixels
P99 = 2.326  # of a normal distribution, in standard deviations


class Latency(NamedTuple):
    """A log-normal distribution of seconds, by its median and its 99th percentile."""

    median: float
    late: float

    def draw(self, random: np.random.Generator) -> float:
        """One latency; the median where both are one."""
        if self.late == self.median:
            return self.median
        return float(
            random.lognormal(math.log(self.median), math.log(self.late / self.median) / P99)
        )


class PlannedTurn(NamedTuple):
    """A turn: the tokens that the policy writes, the seconds that its tool takes, and the tokens and
    images of the response.
    """

    tokens: int
    tool_s: float = 0.0
    response: int = 0
    images: tuple[ImageRef, ...] = ()


class Plan(NamedTuple):
    """A trajectory. `answer` is None where it ends without one, and else judged in `judge_s` seconds;
    equal answers of a group are judged once.
    """

    turns: tuple[PlannedTurn, ...]
    answer: str | None
    judge_s: float


class PlannedGroup(NamedTuple):
    """A question: the tokens of its prompt, the images in it, and its members."""

    prompt: int
    images: tuple[ImageRef, ...]
    members: tuple[Plan, ...]


def drawn(
    config: ConfigDict,
    preprocessor: Preprocessor,
    tool: Latency,
    judge: Latency,
    seed: int,
    mean_turns: float,
) -> Iterator[list[PlannedGroup]]:
    """Steps of questions about 4K pictures, without end.

    A trajectory has 1 to `agent.max_turns` turns of about 180 tokens. Between them it reads
    passages (600 to 2,400 tokens), thumbnails (700 to 1,400) or a crop (64 to 2,600), as
    experiments/benchmarks/padding.py has it. Members of a group answer differently.

    Args:
        config: a run's, with `agent`, `rl` and `tools`.
        preprocessor: of the policy, for the tokens of a picture.
        tool: latency of a call, cut at `tools.deadline_s`.
        judge: latency of a verdict.
        seed: of all draws.
        mean_turns: of the geometric distribution of a trajectory's turns, cut at `agent.max_turns`; 0:
            all numbers of turns are as likely.
    """
    random, side, number = np.random.default_rng(seed), preprocessor.token_side, 0
    most = config.agent.max_turns

    def picture(width, height):
        nonlocal number
        number += 1
        return ImageRef(f'drawn-{number}', int(width), int(height))

    def response():
        kind = random.integers(3)
        if not kind:
            return int(random.uniform(600, 2400)), ()
        if kind == 1:
            thumbnails = [picture(9 * side, 9 * side) for _ in range(config.agent.image_results)]
            return int(random.uniform(700, 1400)), tuple(thumbnails)
        tokens = int(random.uniform(64, 2600))
        across = side * max(8, math.isqrt(tokens))
        return tokens, (picture(across, across),)

    def turn(last):
        tokens = min(max(2, int(random.lognormal(5.2, 0.5))), config.agent.turn_tokens)
        seconds = min(tool.draw(random), config.tools.deadline_s)
        return PlannedTurn(tokens) if last else PlannedTurn(tokens, seconds, *response())

    while True:
        step = []
        for _ in range(config.rl.questions_per_step):
            image = picture(*PICTURES[random.integers(len(PICTURES))])
            tokens = preprocessor.merged_tokens(image.width, image.height)
            members = []
            for g in range(config.rl.members):
                turns = int(random.integers(1, most + 1))
                if mean_turns:
                    turns = min(most, int(random.geometric(1 / mean_turns)))
                plan = tuple(turn(t + 1 == turns) for t in range(turns))
                members.append(Plan(plan, f'answer {g}', judge.draw(random)))
            step.append(
                PlannedGroup(tokens + int(random.integers(20, 220)), (image,), tuple(members))
            )
        yield step


def recorded(workdir: Path, judge: Latency, seed: int) -> list[list[PlannedGroup]]:
    """The steps of a run of RL that kept its trajectories, with the latencies that they met.

    Args:
        workdir: of the run.
        judge: latency of a verdict, which runs do not record.
        seed: of the verdicts, and of the order of a step's questions, which are on disk in the order
            in which they were finished.
    """
    random, steps = np.random.default_rng(seed), []
    for file in sorted((workdir / 'rl' / 'trajectories').glob('*.jsonl')):
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in read_trajectories(file, mend=False):
            groups.setdefault(trajectory.question.id, []).append(trajectory)
        # a question whose picture could not be had has no turns
        had = [group for group in groups.values() if all(t.turns for t in group)]
        step = [_of_group(group, judge, random) for group in had]
        steps.append([step[i] for i in random.permutation(len(step))])
    return steps


def _of_group(
    group: Sequence[Trajectory], judge: Latency, random: np.random.Generator
) -> PlannedGroup:
    def turn(turn):
        seen = turn.observation
        shown = tuple(p for p in seen.parts if isinstance(p, ImageRef)) if seen else ()
        return PlannedTurn(
            max(2, len(turn.tokens)),
            seen.latency_s if seen else 0.0,
            len(turn.observation_tokens),
            shown,
        )

    first = group[0]
    shown = sum(len(turn(t).images) for t in first.turns)
    return PlannedGroup(
        len(first.prompt_tokens),
        tuple(first.images[: len(first.images) - shown]),
        tuple(
            Plan(tuple(map(turn, t.turns)), t.answer, judge.draw(random))
            for t in sorted(group, key=lambda t: t.member)
        ),
    )


def with_latency(
    steps: Sequence[Sequence[PlannedGroup]], tool: Latency | None, judge: Latency | None, seed: int
) -> list[list[PlannedGroup]]:
    """The same trajectories with other tools or another judge.

    Args:
        steps: the trajectories.
        tool: latency of a call that took any time; None: as it was.
        judge: latency of a verdict; likewise.
        seed: of all draws.
    """
    random = np.random.default_rng(seed)

    def turn(turn):
        return turn._replace(tool_s=tool.draw(random)) if tool and turn.tool_s else turn

    def plan(plan):
        judge_s = judge.draw(random) if judge else plan.judge_s
        return plan._replace(turns=tuple(map(turn, plan.turns)), judge_s=judge_s)

    return [[g._replace(members=tuple(map(plan, g.members))) for g in step] for step in steps]
