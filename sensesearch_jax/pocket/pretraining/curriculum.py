"""The curriculum of the base policy: which examples each step has, as a batch of arrays in static shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import GroupBatch, ImageTable, Member, Row, build_groups
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.pocket.pretraining.example import Example
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.probes import VisualTargets, visual_targets
from sensesearch_jax.pocket.pretraining.reading import ReadingQuestions
from sensesearch_jax.pocket.pretraining.search_dialogues import SearchDialogues
from sensesearch_jax.pocket.pretraining.visual_questions import VisualQuestions
from sensesearch_jax.pocket.pretraining.zoom_dialogues import ZoomDialogues, ZoomExample
from sensesearch_jax.pocket.world.files import PocketFiles


class Batch(NamedTuple):
    """A group batch; `images` and `targets` are None for a batch of pages."""

    groups: GroupBatch
    images: tuple[np.ndarray, ...] | None
    targets: VisualTargets | None


class Curriculum:
    """Batches of examples as arrays, in static shapes: short pages first, then pictures and growing
    pages in turn.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        sizes: PolicySizes,
        files: PocketFiles,
        pages: Pages,
    ):
        self.config, self.sizes = config, sizes
        self.preprocessor = Preprocessor.read(folder)
        self.chat = ChatTokenizer(folder, self.preprocessor.merged_tokens)
        self.vqa = VisualQuestions(files, pages, max(config.questions))
        self.reading, self.search_dialogues = ReadingQuestions(pages), SearchDialogues(files, pages)
        self.zooms = ZoomDialogues(self.vqa)
        # Later turns of a dialogue: what stands between an answer's end and the next answer.
        plain = self.chat.prompt('', [''])
        self.empty_system = plain.index(self.chat.im_end) + 1

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless; batch i depends on the seed and i only, so that a restart goes on where it
        stopped.
        """
        while True:
            yield self.batch(np.random.default_rng([seed, start]), start)
            start += 1

    def batch(self, rng: np.random.Generator, step: int) -> Batch:
        """The batch of one step of the curriculum, counted from 0."""
        config, lengths = self.config, self.config.page_lengths
        after, left = step - config.reading_steps, config.steps - step
        if left <= config.attribute_steps:
            parts = config.attribute_shares
            return self.attribute_batch(
                rng, parts[len(parts) * (config.attribute_steps - left) // config.attribute_steps]
            )
        left -= config.attribute_steps
        zoomed = left <= config.zoom_steps
        formatted = left <= config.zoom_steps + config.formatted_steps
        cloze = left <= config.zoom_steps + config.formatted_steps + config.cloze_steps
        stage = cloze + formatted
        if after < 0:
            return self.page_batch(rng, lengths[0], self.reading)
        if formatted and after % 2 and rng.random() < 0.35:
            return self.plain_pages(rng)
        if cloze and after % 2 and rng.random() < 0.8:
            return self.search_dialogue_batch(rng, formatted)
        if after % (2 if cloze else 3) == cloze:
            longest = min(2 + after * len(lengths) // config.growing_steps, len(lengths))
            return self.page_batch(
                rng, lengths[rng.integers(longest)], partial(self.reading, cloze=cloze), stage
            )
        if zoomed and rng.random() < 0.75:
            return self.zoom_batch(rng)
        return self.picture_batch(rng, max(0.0, 1 - after / config.easy_steps), stage)

    def attribute_batch(self, rng: np.random.Generator, shares: Sequence[float]) -> Batch:
        """A batch of the last stage, of one of five kinds by these probabilities: pages, zooms, and
        attributes asked plainly, within sentences, in a format.
        """
        choice = int(rng.choice(5, p=shares))
        if choice == 0:
            return (
                self.search_dialogue_batch(rng, formatted=True)
                if rng.random() < 1 / 3
                else self.plain_pages(rng)
            )
        if choice == 1:
            return self.zoom_batch(rng, attribute_share=0.8)
        return self.picture_batch(rng, stage=choice - 2, attribute_focus=True)

    def plain_pages(self, rng: np.random.Generator) -> Batch:
        """Pages of the formatted stage that are in no format: markup, namesakes, entries."""
        kind = (self.reading.markup, self.reading.namesakes, self.reading)[
            rng.choice(3, p=[0.3, 0.3, 0.4])
        ]
        lengths = self.config.page_lengths[1:]
        return self.page_batch(rng, lengths[rng.integers(len(lengths))], kind, stage=2)

    def search_dialogue_batch(self, rng: np.random.Generator, formatted: bool) -> Batch:
        """A batch of search dialogues of some length."""
        lengths = self.config.search_dialogue_lengths
        return self.page_batch(
            rng,
            lengths[rng.integers(len(lengths))],
            partial(self.search_dialogues, formatted=formatted),
            stage=1 + formatted,
        )

    def page_batch(
        self,
        rng: np.random.Generator,
        length: int,
        examples: Callable[[np.random.Generator, int], Example],
        stage: int = 0,
    ) -> Batch:
        """Texts as whole dialogues of `length` tokens: every question of an example in turn, one
        member per row.

        Args:
            rng: the only source of randomness.
            length: tokens of a row, system prompt and padding included.
            examples: random generator, tokens -> an example of about that length.
            stage: 0 plain, 1 cloze, 2 formatted: which of `config.page_tokens` a batch has.
        """
        rows, system_tokens = [], length // 2
        while len(rows) < self.config.page_tokens[stage] // length:
            example = examples(rng, length)
            prompt = self.chat.prompt(
                example.system, [f'{example.text}\n{example.pairs[0][0]}'.lstrip()]
            )
            start = prompt.index(self.chat.im_end) + 2  # behind the system turn
            tokens, response = prompt[start:], [False] * (len(prompt) - start)
            for i, (question, answer) in enumerate(example.pairs):
                between = self.chat.prompt('', [question])[self.empty_system :] if i else []
                reply = self.chat.assistant(answer)
                tokens += [*between, *reply]
                response += [False] * len(between) + [True] * len(reply)
            if len(tokens) < length and start <= system_tokens:
                rows.append(Row(prompt[:start], (), [Member(tokens, response)]))
        return Batch(self._groups(rows, {}, 1, system_tokens, length), None, None)

    def picture_batch(
        self,
        rng: np.random.Generator,
        ease: float = 0.0,
        stage: int = 0,
        attribute_focus: bool = False,
    ) -> Batch:
        """Pictures with their questions, one picture per row and a member per question, and the
        probes' targets.

        Args:
            rng: the only source of randomness.
            ease: probability of a close view.
            stage: 0 plain, 1 cloze, 2 formatted: which static lengths.
            attribute_focus: mostly questions on colour and shape, behind longer system prompts.
        """
        config = self.config
        questions, prompt_tokens, answer_tokens = (
            of_stages[stage]
            for of_stages in (config.questions, config.picture_tokens, config.answer_tokens)
        )
        prompt_tokens = config.attribute_tokens if attribute_focus else prompt_tokens
        examples, rows = [], []
        while len(rows) < self.config.pictures:
            example = self.vqa(rng, ease, stage > 0, stage > 1, attribute_focus)
            example = example._replace(pairs=example.pairs[:questions])
            row = self._row(example, (str(len(rows)),))
            if self._has_slots(example.picture) and self._fits(row, prompt_tokens, answer_tokens):
                examples.append(example)
                rows.append(row)
        return self._pictured(
            rows,
            examples,
            [[example.picture] for example in examples],
            questions,
            prompt_tokens,
            answer_tokens,
        )

    def zoom_batch(self, rng: np.random.Generator, attribute_share: float = 0.6) -> Batch:
        """Scenes with their zooms: a row has the scene, and a member for every zoom with a picture
        of its own.
        """
        config, examples, rows = self.config, [], []
        prompt_tokens, answer_tokens = config.zoom_tokens
        while len(rows) < config.zoom_pictures:
            example = self.zooms(rng, config.zooms, attribute_share)
            pictures = [example.picture, *(zoom.picture for zoom in example.zooms)]
            row = self._zoom_row(example, [f'{len(rows)}/{i}' for i in range(len(pictures))])
            if all(map(self._has_slots, pictures)) and self._fits(
                row, prompt_tokens, answer_tokens
            ):
                examples.append((example, pictures))
                rows.append(row)
        return self._pictured(rows, *zip(*examples), config.zooms, prompt_tokens, answer_tokens)

    def _has_slots(self, picture: Image.Image) -> bool:
        _, high, wide = self.preprocessor.grid(*picture.size)
        return (
            window_slots(high // 2, wide // 2, self.sizes.vision.window_tokens)
            <= self.config.picture_slots
        )

    def _pictured(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example | ZoomExample],
        pictures: Sequence[Sequence[Image.Image]],
        members: int,
        prompt_tokens: int,
        answer_tokens: int,
    ) -> Batch:
        """Rows with equally many pictures each, the first of them in the prompt, and the probes'
        targets of that one.
        """
        slots = self.config.picture_slots
        names = [
            [*row.images, *(name for member in row.members for name in member.images)]
            for row in rows
        ]
        pixels = [[self.preprocessor.patches(picture) for picture in some] for some in pictures]
        images = batch_images(list(itertools.chain(*pixels)), self.sizes.vision, slots=slots)
        grids = {
            name: grid for some, shown in zip(names, pixels) for name, (_, grid) in zip(some, shown)
        }
        groups = self._groups(rows, grids, members, prompt_tokens, answer_tokens)
        # The tower's output takes this place, `slots` rows for every picture, of which its first
        # ones are tokens.
        counts = np.reshape(images.counts, (len(rows), -1))
        positions = [
            np.concatenate([i * slots + np.arange(n) for i, n in enumerate(some)])
            for some in counts
        ]

        def in_table(index):
            return np.stack(
                [np.where(of >= 0, place[of], -1) for of, place in zip(index, positions)]
            )

        groups = groups._replace(
            features=np.zeros((len(rows), 1, self.sizes.language.width), np.float32),
            prompt_features=in_table(groups.prompt_features),
            feature_index=in_table(groups.feature_index),
        )
        starts = [int(np.nonzero(row >= 0)[0][0]) for row in groups.prompt_features]
        first = [(grid[1] // 2, grid[2] // 2) for (_, grid), *_ in pixels]
        targets = visual_targets(
            [example.boxes for example in examples],
            first,
            starts,
            groups.prompt.shape[1],
            attributes=[example.attributes for example in examples],
        )
        return Batch(groups, images[:4], targets)

    def _row(self, example: Example, images: tuple[str, ...]) -> Row:
        prompts, shared = self._prompts(
            example.system, example.picture, [question for question, _ in example.pairs]
        )
        members = []
        for prompt, (_, answer) in zip(prompts, example.pairs):
            ids = self.chat.assistant(answer)
            members.append(
                Member(
                    [*prompt[shared:], *ids], [False] * (len(prompt) - shared) + [True] * len(ids)
                )
            )
        return Row(prompts[0][:shared], images, members)

    def _zoom_row(self, example: ZoomExample, names: Sequence[str]) -> Row:
        prompts, shared = self._prompts(
            example.system, example.picture, [zoom.question for zoom in example.zooms]
        )
        members = []
        for prompt, zoom, name in zip(prompts, example.zooms, names[1:]):
            shown = [zoom.shown] * bool(zoom.shown) + [ImageRef('', *zoom.picture.size)]
            parts = (
                (prompt[shared:], False),
                (self.chat.assistant(zoom.first), zoom.right),
                (self.chat.prompt('', shown)[self.empty_system :], False),
                (self.chat.assistant(zoom.second), True),
            )
            members.append(
                Member(
                    [i for ids, _ in parts for i in ids],
                    [response for ids, response in parts for _ in ids],
                    (name,),
                )
            )
        return Row(prompts[0][:shared], tuple(names[:1]), members)

    def _prompts(
        self, system: str, picture: Image.Image, questions: Sequence[str]
    ) -> tuple[list[list[int]], int]:
        """The prompts of questions about one picture, and how many tokens they share.

        What all questions share is the row's prompt; at least the last token of each is left to its
        member.
        """
        prompts = [
            self.chat.prompt(system, [ImageRef('', *picture.size), question])
            for question in questions
        ]
        shared = next(
            i
            for i, column in enumerate(zip(*(w[:-1] for w in prompts), strict=False))
            if len(set(column)) > 1 or i == min(map(len, prompts)) - 2
        )
        return prompts, shared

    def _fits(self, row: Row, prompt_tokens: int, answer_tokens: int) -> bool:
        """Whether the row stays within the static shapes; a rare example with a long text does not."""
        return (
            len(row.prompt) <= prompt_tokens
            and max(len(m.tokens) for m in row.members) < answer_tokens
        )

    def _groups(
        self, rows, grids, members: int, prompt_tokens: int, suffix_tokens: int
    ) -> GroupBatch:
        features = {
            name: np.zeros((grid[1] * grid[2] // 4, 1), np.float32) for name, grid in grids.items()
        }
        batch = build_groups(
            rows,
            ImageTable(grids, features),
            image_token=self.sizes.image_token,
            merge=2,
            members=members,
            width=1,
            prompt_step=prompt_tokens,
            suffix_step=suffix_tokens,
        )
        return batch
