"""An expert behind any OpenAI-compatible chat server that takes images."""

from collections.abc import Sequence

from sensesearch_jax.agent.actions import Action, FormatError
from sensesearch_jax.agent.openai_model import OpenAIAgent
from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, Turn


class OpenAIExpert:
    """Asks a served model for one turn at a time, with the policy's own system prompt and
    conversation.

    Args:
        agent: the served model, with the system prompt of the protocol and tools.
        protocol, tools: as in the environment.
        tries: replies that are asked for per turn, until one has reasoning and a valid action.
    """

    def __init__(
        self, agent: OpenAIAgent, protocol: Protocol, tools: Sequence[str], tries: int
    ) -> None:
        self.agent = agent
        self.protocol = protocol
        self.tools = tuple(tools)
        self.tries = tries

    def unmet(self, question: Question) -> str | None:
        """See `Expert`: the model tries whatever it is asked, with the tools that there are."""
        return None

    def next_turn(
        self, question: Question, images: Sequence[ImageRef], turns: Sequence[Turn]
    ) -> tuple[str, Action | FormatError] | ToolFailure:
        """See `Expert`. Asks again after a reply without valid action; returns the last one's
        FormatError.
        """
        parts = self.protocol.user_parts(question, images)
        for sample in range(self.tries):
            reply = self.agent.write(parts, turns, sample)
            if isinstance(reply, ToolFailure):
                return reply
            turn = self.protocol.parse(reply.text, self.tools)
            if turn.thought and not isinstance(turn.action, FormatError):
                break
        return turn.thought, turn.action
