"""The interface of an expert: the next turn, given the question and the turns so far."""

from collections.abc import Sequence
from typing import Protocol as Interface

from sensesearch_jax.agent.actions import Action, FormatError
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, Turn


class Expert(Interface):
    """Writes one turn at a time, having seen what a policy would have seen."""

    def unmet(self, question: Question) -> str | None:
        """Reason why such a question cannot be demonstrated with the run's tools; None if it can."""

    def next_turn(
        self, question: Question, images: Sequence[ImageRef], turns: Sequence[Turn]
    ) -> tuple[str, Action | FormatError] | ToolFailure:
        """The next turn.

        Args:
            question: to solve.
            images: the question's, on the tool server.
            turns: those so far.

        Returns:
            Reasoning and action; FormatError: it took none. ToolFailure: it is not there.
        """
