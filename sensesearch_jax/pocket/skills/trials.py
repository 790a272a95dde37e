"""Trials of single skills within the protocol's own turns: dialogues up to where the skill is needed.

What comes before is written as the demonstrations write it, and tools have answered as they would, so
that a policy fails by the skill alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from sensesearch_jax.agent.actions import Action, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.observations import NO_RESULTS, image_crop_parts, text_search_parts
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.pocket.expert.phrases import (
    FIRST_CROP,
    GOAL,
    GOAL_COUNT,
    LOOK_UP,
    NOTHING_HERE,
    READ,
    SEARCH_CROP,
    SEE,
    say,
)
from sensesearch_jax.pocket.skills.reader import Given, Reader
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.observation_limits import LIMITS
from sensesearch_jax.pocket.world.question_templates import COUNT, SEEN_WORDS
from sensesearch_jax.pocket.world.questions import make_questions
from sensesearch_jax.pocket.world.scenes import Renderer, SceneSpec
from sensesearch_jax.rewards.crop_geometry import Box, absolute, loose_box
from sensesearch_jax.rewards.evidence import answer_text, quoted, right_texts, stating
from tools_server.backends.image_matcher import PictureMatcher
from tools_server.backends.text_bm25 import BM25

SYSTEM = DEFAULT.system_prompt(TOOLS)
THUMBNAIL = 56  # pixels
BOX_TOKENS = 40  # that a box and the end of its call take at most


class Scene(NamedTuple):
    """A question with its scene."""

    question: Question
    spec: SceneSpec


class World:
    """Entities to ask about and the searches that know them.

    Args:
        files: the entities.
        split: whose entities are asked about.
        matcher: of the image search.
        titles: of its pictures.
        texts: the text search.
    """

    def __init__(
        self,
        files: PocketFiles,
        split: str,
        matcher: PictureMatcher,
        titles: Sequence[str],
        texts: BM25,
    ):
        self.files, self.split, self.texts = files, split, texts
        self.matcher, self.titles = matcher, titles
        self.renderer = Renderer(files)

    def scenes(self, category: str, count: int, seed: int) -> list[Scene]:
        """Questions of a category with their scenes."""
        return [
            Scene(*made) for made in make_questions(self.files, self.split, category, count, seed)
        ]

    def whole(self, scene: Scene) -> Image.Image:
        """The picture of a scene, as large as policies need it."""
        return self.renderer.render(scene.spec, size=(960, 540))

    def view(self, scene: Scene, box: Box) -> Image.Image | None:
        """A crop at the scene's own pixels; None where the box is none."""
        x0, y0, x1, y1 = (min(1.0, max(0.0, v)) for v in box)
        if x1 - x0 < 0.01 or y1 - y0 < 0.01:
            return None
        return self.renderer.render(scene.spec, (x0, y0, x1, y1))

    def found(self, scene: Scene, picture: Image.Image | None) -> bool:
        """Whether the image search names the object asked for first."""
        if picture is None:
            return False
        matches = self.matcher.search(np.asarray(picture), 1)
        return bool(matches) and self.titles[matches[0][0]] == scene.question.truth['title']

    def thumbnail(self, entity: str) -> Image.Image:
        """The picture of an entity as an image search shows it."""
        pixels = self.renderer.picture(entity)[0]
        return Image.fromarray(
            cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        )


def call_of(rest: str) -> ImageCrop | None:
    """The crop that is called behind `"bbox": [`; None where that is no box of picture 1 or 2.

    The argument for the picture may have any name: SFT teaches the protocol's within a few steps.

    Args:
        rest: of the call, such as `0.1, 0.2, 0.3, 0.4], "image_index": 2}}`.
    """
    found = re.fullmatch(r'([^\]]*)\](?:, "[^"]*": ([12]))?\}\}', rest)
    if found is None:
        return None
    call = f'{{"name": "image_crop", "arguments": {{"bbox": [{found[1]}]}}}}'
    action = DEFAULT.parse(f'<think>.</think>\n<tool_call>\n{call}\n</tool_call>', TOOLS).action
    return ImageCrop(action.bbox, int(found[2] or 1)) if isinstance(action, ImageCrop) else None


class Trials:
    """Makes the dialogues of each skill and reads what the policy does in them.

    Args:
        reader: of the policy.
        world: whose entities are asked about.
        seed: of the questions.
    """

    def __init__(self, reader: Reader, world: World, seed: int):
        self.reader, self.world, self.seed = reader, world, seed
        self._rng = np.random.default_rng(seed)

    def start(self, scene: Scene, picture: Image.Image) -> Given:
        """System prompt, picture and question."""
        chat = self.reader.chat
        parts = DEFAULT.user_parts(scene.question, [self.reader.ref(picture)])
        return self.reader.given([chat.prompt(SYSTEM, parts)], [picture])

    def turn(self, given: Given, thought: str, action: Action, parts: Sequence) -> Given:
        """The dialogue with a turn and what its tool gave, texts and pictures."""
        chat, pictures = self.reader.chat, [p for p in parts if not isinstance(p, str)]
        ids = chat.assistant(DEFAULT.render_action(thought, action))
        shown = [part if isinstance(part, str) else self.reader.ref(part) for part in parts]
        tokens = [*given.tokens, *ids, *chat.observation(shown, ids[-1])]
        return Given(tokens, [*given.pictures, *pictures], [False] * len(tokens))

    def cropped(self, scene: Scene, box: Box) -> Given:
        """The dialogue after a first crop."""
        given = self.start(scene, self.world.whole(scene))
        thought = say(GOAL + FIRST_CROP, scene.question)
        view = self.world.view(scene, box)
        return self.turn(given, thought, ImageCrop(box), image_crop_parts(2, view))

    def boxes(self, count: int) -> Iterator[tuple[str, bool]]:
        """('first crop', found) for each question, and ('second crop', found) for those missed."""
        scenes = self.world.scenes('search', count, self.seed)
        givens = [self.start(scene, self.world.whole(scene)) for scene in scenes]
        actions = self._calls(givens, [say(GOAL + FIRST_CROP, scene.question) for scene in scenes])
        missed = []
        for scene, given, action in zip(scenes, givens, actions):
            view = self.world.view(scene, action.bbox) if action else None
            found = self.world.found(scene, view)
            yield 'first crop', found
            if view is None or found:
                continue
            given = self.turn(
                given, say(GOAL + FIRST_CROP, scene.question), action, image_crop_parts(2, view)
            )
            given = self.turn(
                given, say(SEARCH_CROP, scene.question), ImageSearch(2), (NO_RESULTS,)
            )
            missed.append((scene, given, action.bbox))
        if not missed:
            return
        scenes, givens, regions = zip(*missed)
        for scene, region, action in zip(
            scenes, regions, self._calls(givens, [NOTHING_HERE] * len(scenes))
        ):
            box = action and (
                absolute(action.bbox, region) if action.image_index == 2 else action.bbox
            )
            yield 'second crop', bool(box) and self.world.found(scene, self.world.view(scene, box))

    def _calls(self, givens: Sequence[Given], thoughts: Sequence[str]) -> list[ImageCrop | None]:
        """The crops that the policy asks for behind given thoughts; None where it writes none."""
        begun = [f'<think>{thought}</think>\n<tool_call>\n{{"name": "image_crop", "arguments": {{"bbox": ['
                 for thought in thoughts]  # fmt: skip
        whole = [
            self.reader.given([given.tokens, self.reader.beginning(text)], given.pictures)
            for given, text in zip(givens, begun)
        ]
        return [call_of(rest) for rest in self.reader.written(whole, BOX_TOKENS, '}}')]

    def seen(self, count: int) -> Iterator[tuple[str, Given]]:
        """('colour' | 'shape' | 'count', dialogue): what is seen is in question, of single objects
        after a good crop. ('option', dialogue) where it is to be chosen: the letter of what is seen.
        """
        for scene in self.world.scenes('perception', count, self.seed):
            question = scene.question
            value, kind = right_texts(question)[0], question.truth['field']
            if kind == COUNT.name:
                given, words = self.start(scene, self.world.whole(scene)), GOAL_COUNT + SEE
            else:
                given, words = self.cropped(scene, loose_box(question.truth['box'])), SEE
            turn = f'<think>{say(words, question, text=value)}</think>\n<answer>'
            yield SEEN_WORDS.get(kind, kind), self.reader.asked(given, turn, [value])
            if question.choices:
                letter = answer_text(question, value)
                turn = f'<think>{say(SEE, question, text=value)}</think>\n<answer>{letter}</answer>'
                yield 'option', self.reader.asked(given, turn, [letter])

    def copied(self, count: int) -> Iterator[tuple[str, Given]]:
        """('copy', dialogue): a name out of an image search's titles, in a thought and in a query."""
        pool = [e for e in self.world.files.entities.values() if e.split == self.world.split]
        for scene in self.world.scenes('search', count, self.seed + 1):
            truth = scene.question.truth
            entity = self.world.files.entities[truth['entity']]
            others = self._rng.choice(len(pool), 2, replace=False)
            shown = [entity, *(pool[i] for i in others if pool[i].id != entity.id)]
            parts: list = []
            for i, one in enumerate(shown, 1):
                parts += [f'{chr(10) * (i > 1)}{i}. {one.title}', self.world.thumbnail(one.id)]
            given = self.cropped(scene, loose_box(truth['box']))
            given = self.turn(given, say(SEARCH_CROP, scene.question), ImageSearch(2), parts)
            query, name = truth['query'], entity.short_name
            thought = say(LOOK_UP, scene.question, query=query)
            turn = DEFAULT.render_action(thought, TextSearch(query))
            # as JSON has it: quotation marks are escaped in a call
            in_call = json.dumps(name, ensure_ascii=False)[1:-1]
            yield 'copy', self.reader.asked(given, turn, [name, in_call])

    def fields(self, count: int) -> Iterator[tuple[str, Given]]:
        """('field', dialogue): the value asked for among the two passages that the search gives."""
        for scene in self.world.scenes('search_only', count, self.seed + 2):
            question, truth = scene.question, scene.question.truth
            given = self.start(scene, self.world.thumbnail(truth['entity']))
            passages = self.world.texts.search(truth['query'], LIMITS.text_results)
            parts, value = text_search_parts(passages, LIMITS), question.answers[0]
            if value not in parts[0]:
                continue  # not found, or cut away: no reading would help
            thought = say(LOOK_UP, question, query=truth['query'])
            given = self.turn(given, thought, TextSearch(truth['query']), parts)
            quote = quoted(stating(parts[0], value, truth['title']), value, truth['sought'])
            thought = say(READ, question, quote=quote)
            turn = f'<think>{thought}</think>\n<answer>{value}</answer>'
            yield 'field', self.reader.asked(given, turn, [quote, value])
