"""Sizes, lengths and faults of a source's questions, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import DEFAULT, Protocol, user_text
from sensesearch_jax.agent.trajectory import ImageRef, Question
from sensesearch_jax.data.faults import first_ids
from sensesearch_jax.data.images import HASH, NoImage, read_image
from sensesearch_jax.data.plain_format import BadRecord
from tools_server.failures import ToolError
from tools_server.pictures.convert import check_size
from tools_server.pictures.convert import read_image as decode
from tools_server.pictures.outline import outline

PERCENTILES = {'least': 0, 'median': 50, '90 %': 90, '99 %': 99, 'most': 100}


class BadImage(BadRecord):
    """An image that no policy can be shown; faults of images have kinds as those of records have."""


def image_size(reference: str) -> tuple[int, int]:
    """Width and height of an image as a policy sees it: upright.

    A JPEG or PNG is walked through to its end and not decoded; any other file is decoded.

    Raises:
        BadImage: it is missing, damaged, or larger or narrower than the tool server takes.
    """
    try:
        data = read_image(reference)
    except NoImage as error:
        raise BadImage('missing image', str(error)) from None
    found = outline(data)
    try:
        if found is None:
            width, height = decode(data).size
        else:
            turned = found.orientation >= 5
            width, height = (found.width, found.height)[:: -1 if turned else 1]
        check_size(width, height)
    except ToolError as error:
        kind = 'corrupt image' if found is None else 'image out of limits'
        raise BadImage(kind, f'{reference}: {error.message}') from None
    return width, height


@dataclass(frozen=True)
class Capacity:
    """The lengths that a run's config allows.

    Args:
        system: its system prompt.
        protocol: in which it shows questions.
        tokens: its rollout.prompt_capacity.
    """

    system: str
    protocol: Protocol
    tokens: int


@dataclass
class Measures:
    """Sizes and lengths of sound questions.

    Args:
        chat: tokenizer of the policy, which also knows an image's visual tokens.
        capacity: of the run; None measures the question alone, without a system prompt.
    """

    chat: ChatTokenizer
    capacity: Capacity | None
    values: dict[str, list[int]] = field(default_factory=dict)
    too_long: list[tuple[str, int]] = field(default_factory=list)
    unseen: int = 0  # images that are content hashes, of which only the tool server knows the size

    def add(self, question: Question, sizes: Sequence[tuple[int, int] | None]) -> None:
        """Measures a question.

        Args:
            question: a sound one.
            sizes: of its images in pixels; None for a content hash.
        """
        self.unseen += sum(size is None for size in sizes)
        known = [size for size in sizes if size is not None]
        for width, height in known:
            self._note('image width (pixels)', width)
            self._note('image height (pixels)', height)
            self._note('image tokens', self.chat.visual_tokens(width, height))
        self._note('images a question', len(sizes))
        self._note(
            'question tokens', len(self.chat.prompt('', [user_text(question)])) - self._empty
        )
        if len(known) < len(sizes):
            return
        images = [ImageRef(reference, *size) for reference, size in zip(question.images, known)]
        protocol = self.capacity.protocol if self.capacity else DEFAULT
        system = self.capacity.system if self.capacity else ''
        tokens = len(self.chat.prompt(system, protocol.user_parts(question, images)))
        self._note('prompt tokens' if self.capacity else 'prompt tokens without system', tokens)
        # As the sampler counts: a prompt's last token is run with the first sampled ones.
        if self.capacity and tokens - 1 > self.capacity.tokens:
            self.too_long.append((question.id, tokens))

    def lines(self) -> Iterator[str]:
        """A table of percentiles, and the prompts that do not fit."""
        if self.values:
            yield f'  {"":28}' + ''.join(f'{name:>9}' for name in PERCENTILES)
        for name, values in self.values.items():
            found = np.percentile(values, list(PERCENTILES.values()), method='higher')
            yield f'  {name:28}' + ''.join(f'{value:9.0f}' for value in found)
        if self.unseen:
            yield f'  {self.unseen} images are content hashes, whose sizes only the tool server knows'
        if self.capacity is None:
            return
        asked = len(self.values.get('prompt tokens', ()))
        limit = f'rollout.prompt_capacity {self.capacity.tokens}'
        if not self.too_long:
            yield f'  all {asked} prompts fit into {limit}'
            return
        longest = max(tokens for _, tokens in self.too_long)
        ids = first_ids([name for name, _ in self.too_long], len(self.too_long))
        yield (
            f'  {len(self.too_long)} of {asked} prompts are longer than {limit} '
            f'({ids}) and would be left out one by one; '
            f'raise it to {longest - 1}, or lower max_pixels'
        )

    @property
    def _empty(self) -> int:
        return len(self.chat.prompt('', ['']))

    def _note(self, name: str, value: int) -> None:
        self.values.setdefault(name, []).append(value)


def sizes_of(question: Question) -> list[tuple[int, int] | None] | BadImage:
    """Sizes of a question's images in pixels, None for a content hash; or the first fault."""
    try:
        return [None if i.startswith(HASH) else image_size(i) for i in question.images]
    except BadImage as error:
        return error


def counted(name: str, values: Sequence[str]) -> str:
    """Frequency of each value, the most frequent first, in a line."""
    counts = Counter(value or '(none)' for value in values).most_common()
    shown = ', '.join(f'{value} {count}' for value, count in counts[:12])
    more = f', and {len(counts) - 12} more' if len(counts) > 12 else ''
    return f'  {name}: {shown}{more}'
