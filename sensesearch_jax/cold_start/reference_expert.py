"""An expert that answers with the question's own reference: SFT on answers, without a served model."""

from __future__ import annotations

from collections.abc import Sequence

from sensesearch_jax.agent.actions import Action, Answer
from sensesearch_jax.agent.trajectory import ImageRef, Question, Turn
from sensesearch_jax.rewards.evidence import answer_text, right_texts


class ReferenceExpert:
    """Answers at once, with the first reference.

    It demonstrates the form of an answer and the answer, and no tool: what is not in the image is
    learned by heart. Whoever wants searches demonstrated takes a served model.
    """

    def unmet(self, question: Question) -> str | None:
        """See `Expert`: every question has a reference."""
        return None

    def next_turn(
        self, question: Question, images: Sequence[ImageRef], turns: Sequence[Turn]
    ) -> tuple[str, Action]:
        """See `Expert`."""
        text = right_texts(question)[0]
        return f'It is {text}.', Answer(answer_text(question, text))
