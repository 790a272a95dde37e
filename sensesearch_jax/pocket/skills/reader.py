"""Reading a policy without tools: which tokens it would write next, greedily, behind given ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import GroupBatch, ImageTable, Member, Row, build_groups
from sensesearch_jax.batching.length_bucketing import bucket
from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.training.prefix_shared_forward import group_hidden

ROWS = 4  # read at a time
STEP = 128  # tokens; lengths are padded to multiples of it


class Given(NamedTuple):
    """A dialogue so far: its tokens, the pictures in it, and which tokens are in question."""

    tokens: list[int]
    pictures: list[Image.Image]
    asked: list[bool]


class Reader:
    """A policy directory and what its policy would write.

    Args:
        folder: a Hugging Face directory.
    """

    def __init__(self, folder: Path | str):
        self.policy = load_policy(folder)
        self.preprocessor = Preprocessor.read(folder)
        self.chat = ChatTokenizer(folder, self.preprocessor.merged_tokens)
        sizes, (graph, self._parameters) = self.policy.sizes, nnx.split(self.policy)
        self._suppressed = np.zeros(sizes.language.vocabulary, bool)
        self._suppressed[[*self.chat.suppressed_ids]] = True
        self._suppressed[self.chat.vocab_size :] = True

        def best(policy, hidden):
            logits = jnp.where(self._suppressed, -jnp.inf, policy.logits(hidden))
            return logits.argmax(-1)

        def read(parameters, batch):
            policy = nnx.merge(graph, parameters)
            hidden, context = group_hidden(policy, batch)
            return best(policy, hidden)[:, 0], context

        def go_on(parameters, context, batch):
            policy = nnx.merge(graph, parameters)

            def attention(q, k, v, of_layer):
                cache = KVCache.of(*of_layer, batch.prompt_valid[:, None])
                return attend(q, k, v, batch.valid, (cache,))

            hidden, _ = policy.language.run(
                policy.embed(batch.tokens), batch.positions, attention, tuple(context)
            )
            return best(policy, hidden)[:, 0]

        self._read, self._go_on = jax.jit(read), jax.jit(go_on)
        self._tower = jax.jit(lambda p, images: nnx.merge(graph, p).vision(*images))
        # By id, with the picture, so that no other takes its id.
        self._known: dict[str, tuple[Image.Image, np.ndarray, tuple[int, int, int]]] = {}

    def given(self, parts: Iterable[Sequence[int]], pictures: Sequence[Image.Image]) -> Given:
        """A dialogue of which nothing is in question yet."""
        tokens = list(itertools.chain(*parts))
        return Given(tokens, list(pictures), [False] * len(tokens))

    def ref(self, picture: Image.Image) -> ImageRef:
        """A reference for the chat template, which wants the size alone."""
        return ImageRef('', *picture.size)

    def beginning(self, text: str) -> list[int]:
        """The tokens of the beginning of a turn, without what would end it."""
        return self.chat.assistant(text)[:-1]

    def asked(self, given: Given, turn: str, spans: Sequence[str]) -> Given:
        """The dialogue with a further turn, of which the tokens of some stretches are in question.

        Args:
            given: the dialogue so far.
            turn: the assistant's text.
            spans: stretches of it, in order.
        """
        ids, place = self.chat.assistant(turn), 0
        asked = [False] * len(ids)

        def tokens_of(beginning: str) -> int:
            pairs = zip(ids, self.chat.assistant(beginning))
            return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

        for span in spans:
            start = turn.index(span, place)
            place = start + len(span)
            first, last = tokens_of(turn[:start]), tokens_of(turn[:place])
            asked[first:last] = [True] * (last - first)
        return Given([*given.tokens, *ids], given.pictures, [*given.asked, *asked])

    def right(self, given: Sequence[Given]) -> list[bool]:
        """Of each dialogue whether the policy would write all the tokens in question."""
        found = []
        for some in _chunks(given):
            first = [one.asked.index(True) for one in some]
            rows = [self._row(one, cut, one.tokens[cut:]) for one, cut in zip(some, first)]
            best, _ = self._read(self._parameters, self._batch(rows, some))
            for one, cut, written in zip(some, first, np.asarray(best)):
                wanted = zip(one.tokens[cut:], one.asked[cut:], written)
                found.append(all(a == b for a, asked, b in wanted if asked))
        return found

    def written(self, given: Sequence[Given], count: int, stop: str) -> list[str]:
        """The text that the policy writes behind each dialogue.

        Args:
            given: the dialogues; each ends within a turn of the assistant.
            count: tokens at most.
            stop: a text that ends it, and is part of it.
        """
        texts = []
        for some in _chunks(given):
            for ids in self.continued(some, count, stop):
                text = self.chat.tokenizer.decode(ids, False)
                texts.append(text.partition(stop)[0] + stop * (stop in text))
        return texts

    def continued(self, some: Sequence[Given], count: int, stop: str) -> list[list[int]]:
        """The tokens that the policy writes behind at most ROWS dialogues; see `written`.

        The dialogue goes through the layers once, and then each token by itself.
        """
        rows = [self._row(one, len(one.tokens), [0] * count) for one in some]
        batch = self._batch(rows, some)
        best, context = self._read(self._parameters, batch)
        for place in range(count):
            tokens = batch.tokens.copy()
            tokens[:, 0, place + 1] = np.asarray(best)[:, place]
            batch = batch._replace(tokens=tokens)
            lines = tokens[: len(some), 0, 1 : place + 2].tolist()
            if all(stop in self.chat.tokenizer.decode(line, False) for line in lines):
                break
            best = self._go_on(self._parameters, context, batch)
        return lines

    def _row(self, one: Given, cut: int, rest: Sequence[int]) -> Row:
        names = [str(id(picture)) for picture in one.pictures]
        starts = [i for i, token in enumerate(one.tokens) if token == self.chat.vision_start]
        before = sum(place < cut for place in starts)
        member = Member(rest, [False] * len(rest), names[before:])
        return Row(one.tokens[:cut], names[:before], [member])

    def _batch(self, rows: Sequence[Row], some: Sequence[Given]) -> GroupBatch:
        pictures = {str(id(p)): p for one in some for p in one.pictures}
        for name, picture in pictures.items():
            if self._known.get(name, (None,))[0] is not picture:
                self._known[name] = picture, *self._seen(picture)
        found = {name: self._known[name] for name in pictures}
        table = ImageTable(
            {name: grid for name, (_, _, grid) in found.items()},
            {name: features for name, (_, features, _) in found.items()},
        )
        longest = max(1 + len(row.members[0].tokens) for row in rows)
        return build_groups(
            rows,
            table,
            image_token=self.policy.sizes.image_token,
            merge=self.policy.sizes.vision.merge_size,
            members=1,
            width=self.policy.sizes.vision.feature_width,
            batch=ROWS,
            prompt_step=STEP,
            suffix_step=longest if longest < STEP // 4 else STEP,
            feature_step=2 * STEP,
        )

    def _seen(self, picture: Image.Image) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Features of a picture, and its grid of patches."""
        patches, grid = self.preprocessor.patches(picture)
        sizes = self.policy.sizes.vision
        slots = bucket(window_slots(grid[1] // 2, grid[2] // 2, sizes.window_tokens), 32)
        images = batch_images([(patches, grid)], sizes, slots=slots)
        features = np.asarray(self._tower(self._parameters, images[:4]))
        count = grid[0] * grid[1] * grid[2] // sizes.merge_size**2
        return features.reshape(-1, features.shape[-1])[:count], grid


def _chunks(items: Sequence[Given]) -> Iterator[Sequence[Given]]:
    for first in range(0, len(items), ROWS):
        yield items[first : first + ROWS]
