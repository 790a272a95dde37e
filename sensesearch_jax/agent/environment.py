"""The environment of one agent: runs an action against the tool client and says what was observed."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sensesearch_jax.agent import observations
from sensesearch_jax.agent.actions import (
    Action,
    Answer,
    FormatError,
    ImageCrop,
    ImageSearch,
    TextSearch,
)
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import ParsedTurn, Protocol, disarm, shorten
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Question, Turn


@dataclass(eq=False)
class Environment:
    """Tools, protocol and limits of a run. Holds no state of any trajectory, so all of them may
    share it.

    Args:
        client: the tool server's client, or anything with its methods.
        protocol: the text form, for parsing and for how images are counted.
        tools: the tools that are switched on, a subset of `TOOLS`.
        limits: how much of a result is shown.
    """

    client: ToolClient
    protocol: Protocol
    tools: Sequence[str]
    limits: ObservationLimits

    def __post_init__(self) -> None:
        self.tools = tuple(self.tools)
        self.system_prompt = self.protocol.system_prompt(self.tools)

    def parse(self, text: str) -> ParsedTurn:
        """The reasoning and action in the policy's `text` of one turn."""
        return self.protocol.parse(text, self.tools)

    def user_parts(
        self, question: Question, images: Sequence[ImageRef]
    ) -> list[str | ImageRef] | ToolFailure:
        """The user's turn: the images first, then the text.

        Args:
            question: that is asked.
            images: the question's, on the tool server.

        Returns:
            The parts, or why what belongs to them cannot be had.
        """
        return self.protocol.user_parts(question, images)

    def execute(
        self, action: Action | FormatError, images: Sequence[ImageRef]
    ) -> Observation | None:
        """Runs `action`; blocks for at most the client's deadline.

        Args:
            action: what the policy did.
            images: the images that an image_index can name, in order: the question's, then the
                crops (see `indexed_images`).

        Returns:
            The observation; None after an answer, which ends the trajectory. The policy's own
            mistakes are observations with ok=False; a tool that fails without fault of the policy
            sets infra_failed. Never raises for either.
        """
        if isinstance(action, Answer):
            return None
        if isinstance(action, FormatError):
            # it may quote the turn
            return Observation((disarm(action.message),), ok=False, kind='format_error')
        if isinstance(action, ImageCrop) and self.protocol.crops_original:
            within = tuple(min(max(x, 0.0), 1.0) for x in action.bbox)
            action = ImageCrop(within, 1)
        mistake = self._mistake(action, images)
        if mistake:
            return Observation((mistake,), ok=False, kind='tool_error')
        start = time.monotonic()
        if isinstance(action, TextSearch):
            result = self.client.text_search(action.query, top_k=self.limits.text_results)
        elif isinstance(action, ImageSearch):
            result = self.client.image_search(
                images[action.image_index - 1].sha256, top_k=self.limits.image_results
            )
        else:
            result = self.client.crop(images[action.image_index - 1].sha256, action.bbox)
        latency = time.monotonic() - start
        if isinstance(result, ToolFailure):
            return self._failure(result, latency)
        if isinstance(action, TextSearch):
            parts = observations.text_search_parts(result, self.limits)
            return Observation(parts, ok=True, kind='text_search', latency_s=latency)
        if isinstance(action, ImageSearch):
            if self.protocol.published:
                parts = observations.published_search_parts(result, self.limits)
                shown = tuple(part for part in parts if isinstance(part, ImageRef))
            else:
                parts, shown = observations.image_search_parts(result, self.limits), ()
            return Observation(
                parts, ok=True, kind='image_search', new_images=shown, latency_s=latency
            )
        parts = (
            ('Here is the zoomed image:', result)
            if self.protocol.published
            else observations.image_crop_parts(self.protocol.shown_index(len(images) + 1), result)
        )
        return Observation(
            parts, ok=True, kind='image_crop', new_images=(result,), latency_s=latency
        )

    def _mistake(
        self, action: TextSearch | ImageSearch | ImageCrop, images: Sequence[ImageRef]
    ) -> str | None:
        """The error message for a well-formed call, in the protocol's terms; None if it is valid."""
        if isinstance(action, TextSearch):
            return None if action.query.strip() else 'The query is empty.'
        if not images:
            return 'No images.'
        if not 1 <= action.image_index <= len(images):
            shown = self.protocol.shown_index
            wrong = shorten(shown(action.image_index), 12)
            return f'No image {wrong}. Images: {shown(1)} to {shown(len(images))}.'
        if isinstance(action, ImageCrop):
            x0, y0, x1, y1 = action.bbox
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                return (
                    f'Bad box. 0 <= left < right <= {self.protocol.box_scale}, also top and bottom.'
                )
        return None

    def _failure(self, failure: ToolFailure, latency: float) -> Observation:
        if failure.kind == 'caller':
            text = observations.cut_text(disarm(failure.message), self.limits.max_chars)
            return Observation((text,), ok=False, kind='tool_error', latency_s=latency)
        text = f'The tool failed ({failure.kind}).'
        return Observation(
            (text,), ok=False, kind='tool_error', latency_s=latency, infra_failed=True
        )


def indexed_images(own: Iterable[ImageRef], turns: Iterable[Turn]) -> list[ImageRef]:
    """The images that an image_index can name: the question's own and those that `turns` brought,
    which are crops, and thumbnails too where the protocol counts them.
    """
    crops = (
        ref for turn in turns if turn.observation is not None for ref in turn.observation.new_images
    )
    return [*own, *crops]
