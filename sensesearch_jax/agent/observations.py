"""Tool results as the text and images that the policy reads: terse, numbered, and cut with the cut
said.
"""

import dataclasses
from collections.abc import Sequence

from sensesearch_jax.agent.protocol import disarm
from sensesearch_jax.agent.tool_client import Match, Passage
from sensesearch_jax.agent.trajectory import ImageRef

Parts = tuple[str | ImageRef, ...]

NO_RESULTS = 'No results.'  # what a search that went well and found nothing says


@dataclasses.dataclass(frozen=True)
class ObservationLimits:
    """Limits of a tool's result as the policy sees it."""

    text_results: int = 5
    image_results: int = 5
    thumbnails: bool = True  # False: image search shows titles only
    passage_chars: int | None = None  # characters of one passage's text; None: all
    max_chars: int = 8192  # characters of one observation's text

    def __post_init__(self) -> None:
        if self.text_results < 1 or self.image_results < 1 or self.max_chars < 1:
            raise ValueError('text_results, image_results and max_chars must be at least 1')
        if self.passage_chars is not None and self.passage_chars < 1:
            raise ValueError('passage_chars must be at least 1, or None for whole passages')


def text_search_parts(passages: Sequence[Passage], limits: ObservationLimits) -> Parts:
    """Lines `1. title: text`, best first."""
    lines = []
    for i, passage in enumerate(passages[: limits.text_results], 1):
        text = _one_line(passage.text)
        if limits.passage_chars is not None and len(text) > limits.passage_chars:
            text = text[: limits.passage_chars].rstrip() + '…'
        lines.append(f'{i}. {_one_line(passage.title)}: {text}')
    return (cut_text('\n'.join(lines) or NO_RESULTS, limits.max_chars),)


def image_search_parts(matches: Sequence[Match], limits: ObservationLimits) -> Parts:
    """Lines `1. title`, best first, each followed by its thumbnail if those are shown."""
    matches = matches[: limits.image_results]
    if not matches:
        return (NO_RESULTS,)
    lines = [f'{i}. {_one_line(match.title)}' for i, match in enumerate(matches, 1)]
    if not limits.thumbnails:
        return (cut_text('\n'.join(lines), limits.max_chars),)
    share = max(1, limits.max_chars // len(lines))
    parts: list[str | ImageRef] = []
    for i, (line, match) in enumerate(zip(lines, matches, strict=True)):
        parts += [('\n' if i else '') + cut_text(line, share), match.thumbnail]
    return tuple(parts)


def published_search_parts(matches: Sequence[Match], limits: ObservationLimits) -> Parts:
    """Titles and thumbnails of an image search, worded as for the released SenseNova-MARS policies."""
    matches = matches[: limits.image_results]
    if not matches:
        return ('No matching images were found.',)
    share = max(1, limits.max_chars // len(matches))
    parts: list[str | ImageRef] = []
    for i, match in enumerate(matches, 1):
        title = cut_text(_one_line(match.title), share)
        head = '' if parts else 'Reverse Image Search Results:'
        parts += [f'{head}\n\nTitle {i}: {title}\nThumbnail {i}: ', match.thumbnail]
    return tuple(parts)


def image_crop_parts(shown_index: int, crop: ImageRef) -> Parts:
    """The crop under the number by which later calls name it."""
    return (f'Image {shown_index}:', crop)


def cut_text(text: str, max_chars: int) -> str:
    """`text`, or its first `max_chars` characters and a note that it was cut."""
    return (
        text
        if len(text) <= max_chars
        else f'{text[:max_chars].rstrip()}… [cut at {max_chars} characters]'
    )


def _one_line(text: str) -> str:
    """Text from elsewhere on one line, and as data: no tag in it can act as protocol."""
    return disarm(' '.join(text.split()))
