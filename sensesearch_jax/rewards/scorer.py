"""The run's scorer, for the training reward and every metric alike.

R = accuracy + w · format + v · evidence − tool cost. Source: SenseSearch (arXiv 2512.24330), reward
section, with w = 0.5; evidence, the tool cost and the sample states are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sensesearch_jax.agent.protocol import TOOLS, Protocol, tool_of
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import SampleState, Trajectory
from sensesearch_jax.rewards.accuracy import Judge, answer_score, final_answer
from sensesearch_jax.rewards.evidence import evidence
from sensesearch_jax.rewards.format import format_is_right

TERMS = 'total', 'accuracy', 'format', 'evidence', 'tool_cost'


class Scored(NamedTuple):
    """`reward` has 'total', 'accuracy' (0 to 1), 'format' (0 or 1), 'evidence' (0 to 1) and
    'tool_cost' (≥ 0).

    Format and evidence are not weighted.
    """

    reward: dict[str, float]
    state: SampleState


@dataclass(frozen=True)
class Scorer:
    """Scores finished trajectories and changes nothing in them; holds no state, so threads may
    share it.

    Args:
        protocol: the text form of the turns.
        judge: asked only where the answers' own comparison fails; None: that alone.
        prices: cost of one call by tool name (of `TOOLS`); tools left out are free.
        format_weight, evidence_weight: weights in the total.

    Raises:
        ValueError: a price for an unknown tool, or a negative one.
    """

    protocol: Protocol
    judge: Judge | None
    prices: Mapping[str, float]
    format_weight: float
    evidence_weight: float

    def __post_init__(self) -> None:
        check_prices(self.prices)

    def score(self, trajectory: Trajectory) -> Scored:
        """The reward and the state; asks the judge where it has to, and waits for it."""
        answer = self.answer(trajectory)
        return self.scored(trajectory, 0.0 if answer is None else self.verdict(trajectory, answer))

    def answer(self, trajectory: Trajectory) -> str | None:
        """The answer to be judged; None without one, or of a trajectory that does not count."""
        return None if uncounted(trajectory) else final_answer(trajectory)

    def verdict(self, trajectory: Trajectory, answer: str) -> float | ToolFailure:
        """Score of `answer` by the rule of the trajectory's question, by the judge where it has
        to be asked, with the question's images. The judge's failure is a value.
        """
        images = [image.sha256 for image in trajectory.own_images]
        return answer_score(trajectory.question, answer, self.judge, images)

    def scored(self, trajectory: Trajectory, verdict: float | ToolFailure) -> Scored:
        """The reward and the state, given the verdict on the trajectory's answer (0 if there is
        none).

        Accuracy is how right the answer is, 0 or 1 but for the rule 'f1'. Format is 1 if every turn
        has reasoning and exactly one valid action, no call was refused as the policy's mistake, and
        the last turn is a non-empty answer. Evidence is the share of what a search should bring to
        light that it did; see `evidence`.

        Returns:
            The state is INFRA_FAILED if a tool's infrastructure failed and TOO_LONG where it was
            that (all terms 0), TRUNCATED without an answer (accuracy 0), UNSCORABLE if the judge
            failed (accuracy 0), else OK. Only OK and TRUNCATED are to be learned from.
        """
        if state := uncounted(trajectory):
            return Scored(dict.fromkeys(TERMS, 0.0), state)
        if self.answer(trajectory) is None:
            state = SampleState.TRUNCATED
        else:
            failed = isinstance(verdict, ToolFailure)
            state = SampleState.UNSCORABLE if failed else SampleState.OK
        terms = {
            'accuracy': 0.0 if isinstance(verdict, ToolFailure) else float(verdict),
            'format': float(format_is_right(trajectory, self.protocol)),
            'evidence': evidence(trajectory),
            'tool_cost': float(
                sum(self.prices.get(tool_of(turn.action), 0.0) for turn in trajectory.turns)
            ),
        }
        total = (
            terms['accuracy']
            + self.format_weight * terms['format']
            + self.evidence_weight * terms['evidence']
        )
        return Scored({'total': total - terms['tool_cost'], **terms}, state)


def check_prices(prices: Mapping[str, float]) -> None:
    """Raises a ValueError for a price of an unknown tool, or a negative one."""
    wrong = [name for name, price in prices.items() if name not in TOOLS or not price >= 0]
    if wrong:
        raise ValueError(
            f'tool prices {wrong} are wrong: names are {list(TOOLS)}, prices at least 0'
        )


def uncounted(trajectory: Trajectory) -> SampleState | None:
    """The state of a trajectory that says nothing about the policy; None if it may."""
    if trajectory.state is SampleState.TOO_LONG:
        return trajectory.state
    observations = (turn.observation for turn in trajectory.turns)
    failed = trajectory.state is SampleState.INFRA_FAILED or any(
        o.infra_failed for o in observations if o is not None
    )
    return SampleState.INFRA_FAILED if failed else None


LEARNED_FROM = (SampleState.OK, SampleState.TRUNCATED)


def is_usable(trajectory: Trajectory) -> bool:
    """Whether a trajectory counts in the statistics and in the loss."""
    return trajectory.state in LEARNED_FROM and math.isfinite(trajectory.reward['total'])
