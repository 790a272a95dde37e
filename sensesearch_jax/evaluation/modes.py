"""Modes of asking a question: directly, with the image search's results in the prompt, or as an agent.

Direct and RAG are one turn without tools. Models that were never trained to the protocol answer
there without its tags; then the whole reply behind the reasoning is the answer, as in the released
evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import image_search_parts
from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, Trajectory
from sensesearch_jax.rewards.scorer import Scorer, uncounted

MODES = DIRECT, RAG, AGENT = 'direct', 'rag', 'agent'


class RagEnvironment(Environment):
    """An environment that searches for each of a question's images before the first turn."""

    def user_parts(
        self, question: Question, images: Sequence[ImageRef]
    ) -> list[str | ImageRef] | ToolFailure:
        """See `Environment.user_parts`; what was found stands between images and question."""
        own = super().user_parts(question, images)
        if isinstance(own, ToolFailure):
            return own
        found: list[str | ImageRef] = []
        for index, image in enumerate(images, 1):
            matches = self.client.image_search(image.sha256, top_k=self.limits.image_results)
            if isinstance(matches, ToolFailure):
                return matches
            name = f' {self.protocol.shown_index(index)}' if len(images) > 1 else ''
            found += [
                f'\nImage search for image{name}:\n',
                *image_search_parts(matches, self.limits),
            ]
        return [*own[:-1], *found, f'\n\n{str(own[-1]).lstrip()}']


class SingleTurnScorer(Scorer):
    """The scorer of one turn without tools."""

    def answer(self, trajectory: Trajectory) -> str | None:
        """The answer between its tags, or else all that follows the reasoning."""
        answer = super().answer(trajectory)
        if answer is not None or uncounted(trajectory) or not trajectory.turns:
            return answer
        return untagged_answer(trajectory.turns[-1].text, self.protocol)


def untagged_answer(text: str, protocol: Protocol) -> str | None:
    """The reply behind its reasoning; None for one that is reasoning alone, or nothing."""
    opened, closed = f'<{protocol.thought_tag}>', f'</{protocol.thought_tag}>'
    if opened in text and closed not in text:
        return None
    return text.rpartition(closed)[2].strip() or None


def mode_environment(mode: str, environment: Environment) -> Environment:
    """The environment of a mode.

    Args:
        mode: one of `MODES`.
        environment: of an agent with the run's tools.
    """
    if mode == AGENT:
        return environment
    kind = RagEnvironment if mode == RAG else Environment
    return kind(environment.client, environment.protocol, (), environment.limits)


def mode_scorer(mode: str, scorer: Scorer) -> Scorer:
    """The scorer of a mode, with the weights and the judge of the run's."""
    return scorer if mode == AGENT else SingleTurnScorer(**vars(scorer))
