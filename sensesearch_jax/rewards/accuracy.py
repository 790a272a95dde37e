"""Accuracy: how right an answer is, by the rule that its question names."""

from collections.abc import Callable, Sequence

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.rewards import f1, number_ranges
from tools_server.answer_matching import numbers
from tools_server.answer_matching.characters import clean
from tools_server.answer_matching.verdict import is_right

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
    """Score of `answer` by `question.reward`.

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
    """By InfoSeek's rule; an answer without a number is wrong."""
    said = _number(answer)
    accepted = (_number(reference) for reference in question.answers)
    if said is None:
        return 0.0
    ranges = (ends if isinstance(ends, tuple) else (ends,) for ends in accepted if ends is not None)
    return max((number_ranges.agree(said, ends) for ends in ranges), default=0.0)


def _number(text: str) -> float | tuple[float, float] | None:
    """The number or range that a text is, in words too, or else that it names first, if any."""
    quantity = numbers.read(clean(text))
    if quantity is not None:
        low, high = float(quantity.value), quantity.high
        return low if high is None else (low, float(high))
    return number_ranges.read(text) if any(map(str.isdigit, text)) else None
