"""The one scoring function, for the training reward and every metric alike.

R = accuracy + 0.5 · format − tool cost.
Source: SenseSearch (arXiv 2512.24330), reward section; the tool cost and the sample states are ours.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sensesearch_jax.agent.client import ToolClient, ToolFailure
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS, Answer, FormatError, Protocol, tool_of
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory

FORMAT_WEIGHT = 0.5

# Says whether a response to a question is right, or gives a failure back.
Judge = Callable[[Question, str], 'bool | ToolFailure']


class Scored(NamedTuple):
    """`reward` has 'total', 'accuracy' (0 or 1), 'format' (0 or 1, not weighted) and 'tool_cost' (≥ 0)."""

    reward: dict[str, float]
    state: SampleState


def trajectory_reward(
    trajectory: Trajectory,
    judge: Judge | None = None,
    prices: Mapping[str, float] | None = None,
    protocol: Protocol = DEFAULT,
    format_weight: float = FORMAT_WEIGHT,
) -> Scored:
    """Scores a finished trajectory; changes nothing in it.

    Accuracy is 1 if the answer is right: for multiple choice its letter, else the normalised exact match with
    any reference, else what `judge` says. Format is 1 if every turn has reasoning and exactly one valid
    action, no call was refused as the policy's mistake, and the last turn is a non-empty answer.

    Args:
        trajectory: its turns and question; reward, state and answer are not read, except for a state
            INFRA_FAILED.
        judge: asked only where the exact match fails; None: exact match alone.
        prices: cost of one call by tool name (of `TOOLS`); tools left out are free.
        protocol: the text form of the turns.
        format_weight: weight of format in the total.

    Returns:
        The reward and the state: INFRA_FAILED if a tool's infrastructure failed (all terms 0), TRUNCATED
        without an answer (accuracy 0), UNSCORABLE if the judge failed (accuracy 0; to be left out of the
        loss), else OK.

    Raises:
        ValueError: a price for an unknown tool, or a negative one.
    """
    prices = dict(prices or {})
    wrong = [name for name, price in prices.items() if name not in TOOLS or not price >= 0]
    if wrong:
        raise ValueError(f'tool prices {wrong} are wrong: names are {list(TOOLS)}, prices at least 0')
    observations = [turn.observation for turn in trajectory.turns if turn.observation is not None]
    if trajectory.state is SampleState.INFRA_FAILED or any(o.infra_failed for o in observations):
        return Scored(
            dict.fromkeys(('total', 'accuracy', 'format', 'tool_cost'), 0.0), SampleState.INFRA_FAILED
        )
    answer = final_answer(trajectory)
    verdict = False if answer is None else answer_is_right(trajectory.question, answer, judge)
    if answer is None:
        state = SampleState.TRUNCATED
    else:
        state = SampleState.OK if isinstance(verdict, bool) else SampleState.UNSCORABLE
    accuracy = float(verdict is True)
    good_format = float(format_is_right(trajectory, protocol))
    cost = float(sum(prices.get(tool_of(turn.action), 0.0) for turn in trajectory.turns))
    total = accuracy + format_weight * good_format - cost
    return Scored({'total': total, 'accuracy': accuracy, 'format': good_format, 'tool_cost': cost}, state)


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


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the normalised `answer` equals a normalised reference; an empty one never does."""
    normal = normalise_answer(answer)
    return bool(normal) and any(normal == normalise_answer(reference) for reference in references)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and articles, spaces folded.

    A point inside a number, or a minus before one, is no punctuation: 4.5 is not 45. Commas between digits
    are (1,200 is 1200). An answer that is nothing but an article stays what it is, for it is a letter: "A".
    """
    text = unicodedata.normalize('NFKC', text).casefold().replace('\u2212', '-')
    text = re.sub(r'(?<=\d),(?=\d)', '', text)
    kept = []
    for i, char in enumerate(text):
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        in_number = (char == '.' and before.isdigit() and after.isdigit()) or (
            char == '-' and after.isdigit() and not before.isalnum()
        )
        # Dashes and slashes part words; other punctuation (apostrophes, quotes, dots) just goes.
        if in_number or unicodedata.category(char)[0] != 'P':
            kept.append(char)
        elif unicodedata.category(char) == 'Pd' or char == '/':
            kept.append(' ')
    words = ''.join(kept).split()
    content = [word for word in words if word not in ('a', 'an', 'the')]
    return ' '.join(content or words)


def choice_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The option that `answer` names, as "B", "b.", "(B)", "B. text", "B: text" or in full; else None."""
    letters = [chr(ord('A') + i) for i in range(len(choices))]
    for letter, choice in zip(letters, choices, strict=True):
        if exact_match(answer, [choice]):
            return letter
    match = re.match(r'\s*[(\[]?([A-Za-z])(?:[)\].:]|\s*$)', answer)
    letter = match.group(1).upper() if match else None
    return letter if letter in letters else None
