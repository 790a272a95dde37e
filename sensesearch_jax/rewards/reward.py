"""The one scoring function, for the training reward and every metric alike.

R = accuracy + 0.5 · format + w · evidence − tool cost.
Source: SenseSearch (arXiv 2512.24330), reward section; evidence, the tool cost and the sample states are ours.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sensesearch_jax.agent.client import ToolClient, ToolFailure
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS, Answer, FormatError, Protocol, tool_of
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.rewards.answers import choice_letter, exact_match
from sensesearch_jax.rewards.evidence import evidence

FORMAT_WEIGHT = 0.5

# Says whether a response to a question is right, or gives a failure back.
Judge = Callable[[Question, str], 'bool | ToolFailure']


class Scored(NamedTuple):
    """`reward` has 'total', 'accuracy' (0 or 1), 'format' (0 or 1), 'evidence' (0 to 1) and 'tool_cost' (≥ 0).

    Format and evidence are not weighted.
    """

    reward: dict[str, float]
    state: SampleState


def check_prices(prices: Mapping[str, float]) -> None:
    """Raises a ValueError for a price of an unknown tool, or a negative one."""
    wrong = [name for name, price in prices.items() if name not in TOOLS or not price >= 0]
    if wrong:
        raise ValueError(f'tool prices {wrong} are wrong: names are {list(TOOLS)}, prices at least 0')


def trajectory_reward(
    trajectory: Trajectory,
    judge: Judge | None = None,
    prices: Mapping[str, float] | None = None,
    protocol: Protocol = DEFAULT,
    format_weight: float = FORMAT_WEIGHT,
    evidence_weight: float = 0.0,
) -> Scored:
    """Scores a finished trajectory; changes nothing in it.

    Accuracy is 1 if the answer is right: for multiple choice its letter, else the normalised exact match with
    any reference, else what `judge` says. Format is 1 if every turn has reasoning and exactly one valid
    action, no call was refused as the policy's mistake, and the last turn is a non-empty answer. Evidence is
    the share of what a search should bring to light that it did; see `evidence`.

    Args:
        trajectory: its turns and question; reward, state and answer are not read, except for a state
            INFRA_FAILED.
        judge: asked only where the exact match fails; None: exact match alone.
        prices: cost of one call by tool name (of `TOOLS`); tools left out are free.
        protocol: the text form of the turns.
        format_weight: weight of format in the total.
        evidence_weight: weight of evidence in the total.

    Returns:
        The reward and the state: INFRA_FAILED if a tool's infrastructure failed (all terms 0), TRUNCATED
        without an answer (accuracy 0), UNSCORABLE if the judge failed (accuracy 0; to be left out of the
        loss), else OK.

    Raises:
        ValueError: a price for an unknown tool, or a negative one.
    """
    prices = dict(prices or {})
    check_prices(prices)
    observations = [turn.observation for turn in trajectory.turns if turn.observation is not None]
    if trajectory.state is SampleState.INFRA_FAILED or any(o.infra_failed for o in observations):
        return Scored(
            dict.fromkeys(('total', 'accuracy', 'format', 'evidence', 'tool_cost'), 0.0), SampleState.INFRA_FAILED
        )
    answer = final_answer(trajectory)
    verdict = False if answer is None else answer_is_right(trajectory.question, answer, judge)
    if answer is None:
        state = SampleState.TRUNCATED
    else:
        state = SampleState.OK if isinstance(verdict, bool) else SampleState.UNSCORABLE
    terms = {
        'accuracy': float(verdict is True),
        'format': float(format_is_right(trajectory, protocol)),
        'evidence': evidence(trajectory),
        'tool_cost': float(sum(prices.get(tool_of(turn.action), 0.0) for turn in trajectory.turns)),
    }
    total = terms['accuracy'] + format_weight * terms['format'] + evidence_weight * terms['evidence']
    return Scored({'total': total - terms['tool_cost'], **terms}, state)


def client_judge(client: ToolClient) -> Judge:
    """The tool server's judge as a `Judge`."""
    return lambda question, response: client.judge(question.text, list(question.answers), response)


def final_answer(trajectory: Trajectory) -> str | None:
    """The text of the last turn's answer; None if the last turn is none."""
    action = trajectory.turns[-1].action if trajectory.turns else None
    return action.text if isinstance(action, Answer) else None


def answer_is_right(question: Question, answer: str, judge: Judge | None = None) -> 'bool | ToolFailure':
    """Whether `answer` is right: by letter for multiple choice, else by exact match, else by the judge."""
    if question.choices:
        return choice_letter(answer, question.choices) == question.answers[0].strip().upper()
    if exact_match(answer, question.answers):
        return True
    return False if judge is None else judge(question, answer)


def format_is_right(trajectory: Trajectory, protocol: Protocol = DEFAULT) -> bool:
    """Whether every turn has reasoning and exactly one valid action, the last one a non-empty answer."""
    for i, turn in enumerate(trajectory.turns, 1):
        last = i == len(trajectory.turns)
        if isinstance(turn.action, FormatError) or isinstance(turn.action, Answer) != last:
            return False
        if turn.observation is not None and not turn.observation.ok:
            return False
        if not protocol.parse(turn.text).thought:
            return False
    answer = final_answer(trajectory)
    return bool(answer and answer.strip())
