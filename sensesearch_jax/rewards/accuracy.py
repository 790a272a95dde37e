"""Accuracy: whether the answer is right, by comparison with the references or by the judge."""

from collections.abc import Callable

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from tools_server.answer_matching.verdict import is_right

# Says whether a response to a question is right, or gives a failure back; the last argument is the
# hash of the question's image on the tool server, None where it was not shown.
Judge = Callable[[Question, str, str | None], 'bool | ToolFailure']


def client_judge(client: ToolClient) -> Judge:
    """The tool server's judge as a `Judge`.

    An image that the server has lost, as after a restart, is sent again.
    """

    def judge(question: Question, response: str, image: str | None) -> 'bool | ToolFailure':
        verdict = client.judge(question.text, list(question.answers), response, image)
        if isinstance(verdict, ToolFailure) and verdict.lost:
            sent = client.upload(question.image)
            if not isinstance(sent, ToolFailure):
                verdict = client.judge(question.text, list(question.answers), response, sent.sha256)
        return verdict

    return judge


def final_answer(trajectory: Trajectory) -> str | None:
    """The text of the last turn's answer; None if the last turn is none."""
    action = trajectory.turns[-1].action if trajectory.turns else None
    return action.text if isinstance(action, Answer) else None


def answer_is_right(
    question: Question, answer: str, judge: Judge | None, image: str | None
) -> 'bool | ToolFailure':
    """Whether `answer` is right: by the option it names for multiple choice, else if it is sure to
    be a reference, else by the judge.

    Args:
        question: with its accepted answers and options.
        answer: the policy's, as text.
        judge: asked where the comparison with the references fails; None: that decides alone.
        image: hash of the question's image on the tool server; None if it has not been uploaded.

    Returns:
        The verdict, or the judge's failure.
    """
    if is_right(question.text, question.answers, answer, question.choices):
        return True
    return False if judge is None or question.choices else judge(question, answer, image)
