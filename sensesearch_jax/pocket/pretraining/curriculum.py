"""The curriculum of the base policy: stages with weighted mixes of lessons, and each lesson's batches
in static shapes.
"""

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
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.pocket.invented.names import pick
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.example import Dialogue, Example, Parts, Turn
from sensesearch_jax.pocket.pretraining.option_dialogues import OptionDialogues
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.passage_dialogues import OF_NUMBERS, PassageDialogues
from sensesearch_jax.pocket.pretraining.picture_dialogues import PictureDialogues
from sensesearch_jax.pocket.pretraining.probes import VisualTargets, visual_targets
from sensesearch_jax.pocket.pretraining.reading import ReadingQuestions
from sensesearch_jax.pocket.pretraining.stages import Stages
from sensesearch_jax.pocket.pretraining.tool_dialogues import ToolDialogues, word_pieces
from sensesearch_jax.pocket.pretraining.visual_questions import VisualQuestions
from sensesearch_jax.pocket.world.files import PocketFiles

OPENING = 2  # tokens of a system turn before its text, which all rows of texts share
FILLED = 0.7  # of a text's greatest length, about what texts have on average


class Batch(NamedTuple):
    """A group batch; `images` and `targets` are None for a batch of texts."""

    groups: GroupBatch
    images: tuple[np.ndarray, ...] | None
    targets: VisualTargets | None


class Curriculum:
    """Batches of examples as arrays, in static shapes.

    Args:
        config: of configs/base.py.
        folder: of the policy, with its tokenizer and preprocessor.
        sizes: of the policy.
        files: the data folder.
        pages: texts that may be shown.
        world: of invented entities.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        sizes: PolicySizes,
        files: PocketFiles,
        pages: Pages,
        world: InventedWorld,
    ):
        self.config, self.sizes = config, sizes
        self.preprocessor = Preprocessor.read(folder)
        self.chat = ChatTokenizer(folder, self.preprocessor.merged_tokens)
        self.vqa = VisualQuestions(files, pages, config.plain_pictures.members, world)
        self.reading = ReadingQuestions(pages)
        self.tools = ToolDialogues(world, pages, word_pieces(self.chat.tokenizer))
        self.passages = PassageDialogues(self.tools, pages)
        self.numbers = PassageDialogues(self.tools, pages, OF_NUMBERS, years=0.9)
        self.options = OptionDialogues(pages, self.passages.any)
        self.looks = PictureDialogues(self.vqa)
        # Later turns of a dialogue: what stands between an answer's end and the next answer.
        plain = self.chat.prompt('', [''])
        self.empty_system = plain.index(self.chat.im_end) + 1
        short, *longer = config.texts.lengths
        cloze = partial(self.reading, cloze=True)
        self.lessons: dict[str, Callable[[np.random.Generator], Batch]] = {
            'short pages': lambda rng: self.text_batch(rng, short, self.reading),
            'pages': lambda rng: self.text_batch(rng, pick(rng, longer), self.reading),
            'cloze pages': lambda rng: self.text_batch(rng, pick(rng, longer), cloze),
            'markup': lambda rng: self.text_batch(rng, pick(rng, longer), self.reading.markup),
            'namesakes': lambda rng: self.text_batch(
                rng, pick(rng, longer), self.reading.namesakes
            ),
            'tools': lambda rng: self.text_batch(rng, config.texts.dialogue, self.tools),
            'passages': lambda rng: self.text_batch(rng, config.texts.dialogue, self.passages),
            'numbers': lambda rng: self.text_batch(rng, config.texts.dialogue, self.numbers),
            'options': lambda rng: self.text_batch(rng, config.texts.dialogue, self.options),
            'near pictures': partial(self.picture_batch, ease=1.0),
            'pictures': self.picture_batch,
            'attributes': partial(self.picture_batch, attribute_focus=True),
            'sentences': partial(self.picture_batch, cloze=True, attribute_focus=True),
            'looks': self.look_batch,
            'near looks': self.near_look_batch,
            'counts': self.count_batch,
            'short counts': self.short_count_batch,
        }
        self.stages = Stages(config.stages)
        for stage in self.stages.stages:
            unknown = sorted(set(stage.lessons) - set(self.lessons))
            if unknown or not stage.lessons:
                raise UserError(
                    f'stages: {", ".join(unknown) or "no lesson"} in the lessons of a stage; '
                    f'choose from {", ".join(self.lessons)}.'
                )

    def batches(self, seed: int, start: int) -> Iterator[tuple[str, Batch]]:
        """Lessons with their batches, a stage's `lessons_per_step` for each step, without end.

        They depend on the seed and the step, and on which invented entities are remembered.

        Args:
            seed: of the run.
            start: the first step.
        """
        for step in itertools.count(start):
            rng = np.random.default_rng([seed, step])
            stage = self.stages.at(step)
            lessons = stage.lessons
            weights = np.array(list(lessons.values()), float)
            for _ in range(stage.lessons_per_step):
                name = list(lessons)[rng.choice(len(weights), p=weights / weights.sum())]
                yield name, self.lessons[name](rng)

    def text_batch(
        self,
        rng: np.random.Generator,
        length: int,
        examples: Callable[[np.random.Generator, int], Example],
    ) -> Batch:
        """Texts as whole dialogues of at most `length` tokens, packed into `texts.tokens`.

        All of them are members of one row that share the first tokens of the system turn, so that
        the layers' matrices run over no padding.

        Args:
            rng: the only source of randomness.
            length: tokens of a dialogue, padding included.
            examples: random generator, tokens -> an example of about that length.
        """
        total, places = self.config.texts.tokens, self.config.texts.tokens
        most = max(1, int(total / (FILLED * length)))
        members: list[Member] = []
        while len(members) < most:
            example = examples(rng, length)
            (dialogue,) = example.spoken()
            prompt = self.chat.prompt(
                example.system, [f'{example.text}\n{dialogue.question}'.lstrip()]
            )
            member = self._member(prompt[OPENING:], dialogue, ())
            if len(member.tokens) >= length:
                continue
            places -= 1 + len(member.tokens)
            if places < 0:
                break
            members.append(member)
        row = Row(prompt[:OPENING], (), members)
        return Batch(self._groups([row], {}, most, 8, length, total), None, None)

    def picture_batch(
        self,
        rng: np.random.Generator,
        ease: float = 0.0,
        cloze: bool = False,
        attribute_focus: bool = False,
    ) -> Batch:
        """Pictures with their questions, one picture per row and a member per question, and the
        probes' targets.

        Args:
            rng: the only source of randomness.
            ease: probability of a close view.
            cloze: answers within sentences, places within longer questions.
            attribute_focus: mostly questions on colour and shape, behind longer system prompts.
        """
        shape = (
            self.config.told_pictures if cloze or attribute_focus else self.config.plain_pictures
        )

        def example() -> Example:
            found = self.vqa(rng, ease, cloze, attribute_focus)
            return found._replace(pairs=found.pairs[: shape.members])

        return self._pictured(example, shape)

    def look_batch(self, rng: np.random.Generator) -> Batch:
        """Scenes with dialogues in the tool-call format, some with a second picture."""
        shape = self.config.looks
        return self._pictured(
            lambda: self.looks(rng, shape.members - shape.second_pictures, shape.second_pictures),
            shape,
        )

    def near_look_batch(self, rng: np.random.Generator) -> Batch:
        """Scenes with dialogues that all have a second picture, a near view, and say what it shows."""
        shape = self.config.near_looks
        return self._pictured(lambda: self.looks.near(rng, shape.members), shape)

    def count_batch(self, rng: np.random.Generator) -> Batch:
        """Scenes whose objects are counted one by one, some of them asked for."""
        shape = self.config.counts
        return self._pictured(lambda: self.looks.counts(rng, shape.members), shape)

    def short_count_batch(self, rng: np.random.Generator) -> Batch:
        """Scenes behind short prompts, whose objects are counted: many pictures for the time."""
        return self._pictured(lambda: self.looks.count_alone(rng), self.config.short_counts)

    def _has_slots(self, picture: Image.Image) -> bool:
        _, high, wide = self.preprocessor.grid(*picture.size)
        return (
            window_slots(high // 2, wide // 2, self.sizes.vision.window_tokens) <= self.config.slots
        )

    def _pictured(self, draw: Callable[[], Example], shape: ml_collections.ConfigDict) -> Batch:
        """Rows of one picture and its dialogues, and the probes' targets of those pictures.

        Args:
            draw: an example; one that does not fit the static shapes is drawn again.
            shape: rows, members, tokens of prompt and suffix, packed tokens of a row's suffixes.
        """
        slots, rows, examples, pictures = self.config.slots, [], [], []
        while len(rows) < shape.rows:
            example = draw()
            shown = [example.picture, *_pictures(example.spoken())]
            row = self._row(example, [f'{len(rows)}/{i}' for i in range(len(shown))])
            fits = (
                len(row.prompt) <= shape.prompt
                and max(len(m.tokens) for m in row.members) < shape.suffix
                and sum(1 + len(m.tokens) for m in row.members) <= shape.packed
            )
            if fits and all(map(self._has_slots, shown)):
                rows.append(row)
                examples.append(example)
                pictures.append(shown)
        names = [
            [*row.images, *(name for member in row.members for name in member.images)]
            for row in rows
        ]
        pixels = [[self.preprocessor.patches(picture) for picture in some] for some in pictures]
        images = batch_images(list(itertools.chain(*pixels)), self.sizes.vision, slots=slots)
        grids = {
            name: grid for some, shown in zip(names, pixels) for name, (_, grid) in zip(some, shown)
        }
        groups = self._groups(rows, grids, shape.members, shape.prompt, shape.suffix, shape.packed)
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
            features=np.zeros((len(rows), 1, self.sizes.vision.feature_width), np.float32),
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

    def _row(self, example: Example, names: Sequence[str]) -> Row:
        """A picture's row: the shared part is the prompt; each member has at least a last token."""
        dialogues, picture = example.spoken(), ImageRef('', *example.picture.size)
        prompts = [
            self.chat.prompt(example.system, [picture, dialogue.question]) for dialogue in dialogues
        ]
        shared = next(
            i
            for i, column in enumerate(zip(*(w[:-1] for w in prompts), strict=False))
            if len(set(column)) > 1 or i == min(map(len, prompts)) - 2
        )
        left, members = list(names[1:]), []
        for prompt, dialogue in zip(prompts, dialogues):
            own = [left.pop(0) for _ in _pictures([dialogue])]
            members.append(self._member(prompt[shared:], dialogue, own))
        return Row(prompts[0][:shared], tuple(names[:1]), members)

    def _member(self, opening: Sequence[int], dialogue: Dialogue, images: Sequence[str]) -> Member:
        """A dialogue behind its prompt.

        Args:
            opening: the rest of the prompt.
            dialogue: the turns.
            images: names of the pictures in it.
        """
        tokens, response = list(opening), [False] * len(opening)
        for turn in dialogue.turns:
            ids = self.chat.assistant(turn.text)
            learned = self._learned(turn, ids)
            after = self._after(turn.after, turn.of_tool, ids[-1]) if turn.after else []
            tokens += [*ids, *after]
            response += [*learned, *[False] * len(after)]
        return Member(tokens, response, tuple(images))

    def _learned(self, turn: Turn, ids: Sequence[int]) -> list[bool]:
        """Which tokens of a turn are to be imitated."""

        def tokens_of(beginning: str) -> int:
            """How many tokens of the turn its beginning has, one that goes on beyond it left out."""
            pairs = zip(ids, self.chat.assistant(beginning))
            return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

        learned = [True] * len(ids)
        spans = [(0, len(turn.given))] if turn.given else []
        if turn.skipped:
            first = turn.text.index(turn.skipped)
            spans.append((first, first + len(turn.skipped)))
        for start, end in spans:
            first, last = (tokens_of(turn.text[:place]) if place else 0 for place in (start, end))
            learned[first:last] = [False] * (last - first)
        return learned

    def _after(self, parts: Parts, of_tool: bool, last: int) -> list[int]:
        """The tokens between two turns of the assistant."""
        shown = [part if isinstance(part, str) else ImageRef('', *part.size) for part in parts]
        if of_tool:
            return self.chat.observation(shown, last)
        return self.chat.prompt('', shown)[self.empty_system :]

    def _groups(
        self, rows, grids, members: int, prompt_tokens: int, suffix_tokens: int, packed_tokens: int
    ) -> GroupBatch:
        features = {
            name: np.zeros((grid[1] * grid[2] // 4, 1), np.float32) for name, grid in grids.items()
        }
        return build_groups(
            rows,
            ImageTable(grids, features),
            image_token=self.sizes.image_token,
            merge=2,
            members=members,
            width=1,
            prompt_step=prompt_tokens,
            suffix_step=suffix_tokens,
            pack_step=packed_tokens,
        )


def _pictures(dialogues: Sequence[Dialogue]) -> list[Image.Image]:
    """The pictures that tools give in dialogues, in order."""
    return [
        part
        for dialogue in dialogues
        for turn in dialogue.turns
        for part in turn.after
        if not isinstance(part, str)
    ]
