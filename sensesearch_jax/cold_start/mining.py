"""Mining: plain answers to questions, without tools, and how many of them are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.openai_model import ChatModel, Request, to_messages
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.cold_start.threads import in_threads
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.rewards.accuracy import answer_score
from sensesearch_jax.rewards.scorer import Scorer, uncounted

PLAIN_SYSTEM = 'You are a helpful assistant.'
# Notes a question, how many of its answers are right, and the answers.
Note = Callable[[Question, int, list[str]], None]


class PlainEnvironment(Environment):
    """A plain chat without tools: the reply is the answer."""

    def __init__(self, environment: Environment):
        super().__init__(environment.client, environment.protocol, (), environment.limits)
        self.system_prompt = PLAIN_SYSTEM


class PlainScorer(Scorer):
    """The scorer of a plain chat."""

    def answer(self, trajectory: Trajectory) -> str | None:
        """The whole reply."""
        return (
            None
            if uncounted(trajectory) or not trajectory.turns
            else trajectory.turns[0].text.strip()
        )


@dataclass(frozen=True)
class ServedAnswers:
    """Plain answers of a served model.

    Attributes:
        model: that is asked.
        environment: of the run; its client has the images.
        scorer: the run's.
        samples: answers to each question.
        temperature: of sampling them.
        answer_tokens: most tokens of one.
        threads: questions at a time.
    """

    model: ChatModel
    environment: Environment
    scorer: Scorer
    samples: int
    temperature: float
    answer_tokens: int
    threads: int

    def __call__(self, questions: Sequence[Question], note: Note) -> None:
        """Asks all; those on which something failed are asked again at the end.

        Raises:
            BudgetSpent: not all could be asked; those in flight are noted.
        """
        for question, found in in_threads(self.answers, questions, self.threads, _is_failure):
            if not _is_failure(found):
                note(question, *found)

    def answers(self, question: Question) -> tuple[int, list[str]] | ToolFailure:
        """Number of right answers, and the answers."""
        client = self.environment.client
        images = upload_all(client, question.images)
        if isinstance(images, ToolFailure):
            return images
        user = self.environment.protocol.user_parts(question, images)
        messages = to_messages(PLAIN_SYSTEM, user, (), client.image)
        if isinstance(messages, ToolFailure):
            return messages
        texts: list[str] = []
        while len(texts) < self.samples:
            # All at once, so that the images are paid for once; a server may give fewer.
            counts = {'choices': self.samples - len(texts), 'sample': len(texts)}
            request = Request(messages, self.temperature, self.answer_tokens, **counts)
            reply = self.model.ask(request)
            if isinstance(reply, ToolFailure):
                return reply
            texts += [text.strip() for text in reply.texts]
        right = 0
        shown = [image.sha256 for image in images]
        for text in texts[: self.samples]:
            verdict = answer_score(question, text, self.scorer.judge, shown) if text else 0.0
            if isinstance(verdict, ToolFailure):
                return verdict
            right += verdict == 1
        return right, texts[: self.samples]


def _is_failure(found: Any) -> bool:
    return isinstance(found, ToolFailure)
