"""Accuracy: whether the answer is right, by comparison with the references or by the judge."""

from collections.abc import Callable, Sequence

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.images import upload_all
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


def answer_is_right(
    question: Question, answer: str, judge: Judge | None, images: Sequence[str]
) -> 'bool | ToolFailure':
    """Whether `answer` is right: by the option it names for multiple choice, else if it is sure to
    be a reference, else by the judge.

    Args:
        question: with its accepted answers and options.
        answer: the policy's, as text.
        judge: asked where the comparison with the references fails; None: that decides alone.
        images: hashes of the question's images on the tool server.

    Returns:
        The verdict, or the judge's failure.
    """
    if is_right(question.text, question.answers, answer, question.choices):
        return True
    return False if judge is None or question.choices else judge(question, answer, images)
