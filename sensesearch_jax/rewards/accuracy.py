"""Accuracy: how right an answer is, by the rule that its question names."""

import re
from collections.abc import Callable, Sequence

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.rewards import f1, number_ranges
from tools_server.answer_matching.verdict import is_right

_POINT = re.compile(r'(?<![\d.])\.(?=\d)')  # of a number without a digit before it

# Says whether a response to a question is right, or gives a failure back; the last argument are the
# hashes of the question's images on the tool server, none where they were not shown.
Judge = Callable[[Question, str, Sequence[str]], 'bool | ToolFailure']


def client_judge(client: ToolClient) -> Judge:
    """The tool server's judge as a `Judge`.

    Images that the server has lost, as after a restart, are sent again.
    """

    def judge(question: Question, response: str, images: Sequence[str]) -> 'bool | ToolFailure':
        case = question.text, list(question.answers), response
        verdict = client.judge(*case, images)
        if isinstance(verdict, ToolFailure) and verdict.lost:
            sent = upload_all(client, question.images)
            if not isinstance(sent, ToolFailure):
                verdict = client.judge(*case, [image.sha256 for image in sent])
        return verdict

    return judge


def final_answer(trajectory: Trajectory) -> str | None:
    """The text of the last turn's answer; None if the last turn is none."""
    action = trajectory.turns[-1].action if trajectory.turns else None
    return action.text if isinstance(action, Answer) else None


def answer_score(
    question: Question, answer: str, judge: Judge | None, images: Sequence[str]
) -> 'float | ToolFailure':
    """How right `answer` is, by `question.reward`.

    'judge': 1 if it is sure to be a reference, or else if the judge says so. 'exact': by the first
    of these alone. 'letter', and whatever has options: 1 if it names the right option. 'f1': the
    share of words in common with the reference that it agrees with best. 'number': 1 if its number
    or range is right by a reference, which is a range, or a number that is accepted within a tenth.

    Args:
        question: with its accepted answers and options.
        answer: the policy's, as text.
        judge: asked where the comparison with the references fails; None: that decides alone.
        images: hashes of the question's images on the tool server.

    Returns:
        The score in [0, 1], or the judge's failure.
    """
    if question.reward == 'f1' and not question.choices:
        return f1.score(answer, question.answers)
    if question.reward == 'number' and not question.choices:
        return _number_score(question, answer)
    if is_right(question.text, question.answers, answer, question.choices):
        return 1.0
    if judge is None or question.choices or question.reward != 'judge':
        return 0.0
    verdict = judge(question, answer, images)
    return verdict if isinstance(verdict, ToolFailure) else float(verdict)


def _number_score(question: Question, answer: str) -> float:
    """By InfoSeek's rule, but that '.5' is a half and that an answer without a number is wrong."""
    if not any(map(str.isdigit, answer)):
        return 0.0
    references = (number_ranges.read(_POINT.sub('0.', text)) for text in question.answers)
    accepted = (found if isinstance(found, tuple) else (found,) for found in references)
    return max(number_ranges.score(_POINT.sub('0.', answer), ends) for ends in accepted)
