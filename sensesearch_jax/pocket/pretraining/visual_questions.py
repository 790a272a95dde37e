"""Visual question answering of the base policy: where, how many, which colour or shape.

Plain chat turns: nothing here knows the protocol, a tool or a held-out entity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from sensesearch_jax.pocket.invented.names import pick
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.augmentation import AugmentedRenderer
from sensesearch_jax.pocket.pretraining.example import Example
from sensesearch_jax.pocket.pretraining.option_dialogues import with_options
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.world.colours import NAMES, dominant_colour
from sensesearch_jax.pocket.world.files import Entity, PocketFiles
from sensesearch_jax.pocket.world.question_templates import (
    COLOUR,
    COUNT,
    FACT_FIELDS,
    ONLY,
    PLACES,
    TALLER,
    thing,
)
from sensesearch_jax.pocket.world.questions import SCENE_KINDS
from sensesearch_jax.pocket.world.scenes import COUNTS, SIZES, SceneSpec, sample_scene
from sensesearch_jax.rewards.crop_geometry import loose_box, write_box

ATTRIBUTES = (*NAMES, 'tall', 'wide')
# An object is 'farthest left' only if no other comes as near, in fractions of the view.
MARGIN = 0.06


# What cannot be told from afar is pointed at.
POINTED = (
    'It is at {box}.',
    'For the {key} I must look at {box}.',
    '{key} of the {noun} {place}: "{box}"',
    '{box}',
    'You want the {key} of the {noun} {place}. It is small; show me ({box}).',
    'I look at the {noun} {place}, here: {box}',
    'The {noun} {place} is at {box}. Its {key} cannot be seen from here.',
)


# Said before a place or an answer.
FROM_AFAR = (
    'It is far off.',
    'Here it is.',
    'This one.',
    'I look there.',
    'Small from here; I go nearer.',
    'I see it.',
)

# What is seen, in words, before the reply. A policy that knows a colour as the first word of an
# answer does not yet know it in the middle of a sentence.
IN_SENTENCES = (
    'It is {seen}.', 'It is {seen}.', 'I see {seen}.', 'There it is, {seen}.',
    'I see it well: {seen}.', 'Now it is clear: {seen}.', 'So it is {seen}.',
    'From here it is {seen}.', 'Clearly {seen}.', '"{seen}"',
)  # fmt: skip


class AttributeQuestion(NamedTuple):
    """A question about one object. `seen`: its answer in words, for which options may have a letter."""

    name: str
    question: str
    answer: str
    seen: str


def clip_box(
    box: Sequence[float], view: Sequence[float]
) -> tuple[float, float, float, float] | None:
    """A scene's box in fractions of a view; None where the view shows less than half of it."""
    x0, y0, x1, y1 = view
    w, h = x1 - x0, y1 - y0
    inside = [(box[0] - x0) / w, (box[1] - y0) / h, (box[2] - x0) / w, (box[3] - y0) / h]
    kept = [min(max(v, 0.0), 1.0) for v in inside]
    area = (inside[2] - inside[0]) * (inside[3] - inside[1])
    shown = max(kept[2] - kept[0], 0) * max(kept[3] - kept[1], 0)
    return tuple(kept) if shown > 0.5 * area else None


class VisualQuestions:
    """Views of random scenes of training entities and invented ones, with questions on place, number,
    colour and shape.

    Args:
        files: the data folder.
        pages: where filling texts come from.
        questions: about a view at most.
        world: of the invented ones; None for none.
    """

    def __init__(
        self, files: PocketFiles, pages: Pages, questions: int, world: InventedWorld | None
    ):
        self.renderer = AugmentedRenderer(files, world)
        self.entities = {
            'map': files.select('flag', 'train'),
            'wall': files.select('painting', 'train'),
        }
        self.questions = questions
        self.augmented_share = 0.7  # share of objects that are variants of their entity
        self.pages = pages
        self.seen: dict[str, str | None] = {}

    def __call__(
        self,
        rng: np.random.Generator,
        ease: float = 0.0,
        cloze: bool = False,
        attribute_focus: bool = False,
    ) -> Example:
        """An example; with probability `ease` a close view of something large, where attention is
        found easily.

        Args:
            rng: decides everything.
            ease: probability of a close view.
            cloze: places within longer questions, answers within sentences, longer system prompts.
            attribute_focus: three of five questions ask for colour or shape where an object shows
                one, and most views are near ones.
        """
        kind = 'map' if rng.random() < 0.6 else 'wall'
        close = rng.random() < ease
        level = 1 if close and rng.random() < 0.7 else int(rng.choice(3, p=[0.35, 0.35, 0.3])) + 1
        spec = self.scene(rng, kind, level)
        view = (0.0, 0.0, 1.0, 1.0)
        if close:
            view = self._window(rng, spec)
        elif rng.random() < (0.6 if attribute_focus else 0.35):
            view = self._zoom(rng, spec)
        boxes = [clip_box(spec.fractions(p), view) for p in spec.placements]
        shown = [(p, b) for p, b in zip(spec.placements, boxes) if b is not None]
        picture = self.draw(spec, view)
        boxes = np.array([b for _, b in shown], np.float32).reshape(-1, 4)
        attributes = self.attributes(p.entity for p, _ in shown)
        pairs = self.pairs(rng, kind, [p.entity for p, _ in shown], boxes, cloze, attribute_focus)
        if cloze:
            pairs = [
                _in_sentence(rng, *pair)
                if attribute_focus and rng.random() < 0.6
                else self.pages.cloze(rng, *pair)
                for pair in pairs
            ]
        system = self.pages.system(
            rng,
            300 if cloze or attribute_focus else 110,
            rng.integers(1, 6) if attribute_focus else 1,
        )
        return Example(system, picture, '', pairs, boxes, attributes)

    def scene(self, rng: np.random.Generator, kind: str, level: int) -> SceneSpec:
        """A random scene; a share `augmented_share` of its objects is augmented.

        Args:
            rng: the only source of randomness.
            kind: 'map' or 'wall'.
            level: of difficulty, 1 to 3.
        """
        low, high = COUNTS[level]
        pool = self.renderer.some(rng, self.entities[kind], high, self.augmented_share)
        return sample_scene(rng, pool, kind, int(rng.integers(low, high + 1)), SIZES[level])

    def draw(self, spec: SceneSpec, view: Sequence[float]) -> Image.Image:
        """The view, about as large as the preprocessor makes pictures, so that little is lost."""
        aspect = (view[2] - view[0]) * spec.size[0] / ((view[3] - view[1]) * spec.size[1])
        width = round(400 * min(1.0, (aspect * 9 / 16) ** 0.5))
        return self.renderer.render(spec, view, (width, round(width / aspect)))

    def _window(self, rng, spec: SceneSpec):
        """A window of two to four times an object's size that shows it anywhere."""
        x0, y0, x1, y1 = spec.fractions(pick(rng, spec.placements))
        # of both axes: the scene's own shape
        side = min(1.0, float(rng.uniform(2.0, 4.0)) * max(x1 - x0, y1 - y0))
        left = float(rng.uniform(max(0.0, x1 - side), min(x0, 1 - side)))
        top = float(rng.uniform(max(0.0, y1 - side), min(y0, 1 - side)))
        return left, top, min(1.0, left + side), min(1.0, top + side)

    def _zoom(self, rng, spec: SceneSpec):
        """A box of tenths around one object, of the kind that a crop shows."""
        target = spec.fractions(pick(rng, spec.placements))
        x0, y0, x1, y1 = loose_box(target)
        grow = rng.integers(0, 3, 4) / 10 * (rng.random(4) < 0.6)
        x0, y0 = max(0, x0 - grow[0]), max(0, y0 - grow[1])
        x1, y1 = min(1, x1 + grow[2]), min(1, y1 + grow[3])
        # Views stay between 9:16 and 16:9 in pixels, so that all fit one bucket of the tower.
        while (x1 - x0) > 1.01 * (y1 - y0) and (y0 > 0 or y1 < 1):
            y0, y1 = max(0, y0 - 0.05), min(1, y1 + 0.05)
        return float(x0), float(y0), float(x1), float(y1)

    def places(self, boxes: np.ndarray) -> list[tuple[int, str]]:
        """Objects that words single out beyond doubt, by number, with those words."""
        if len(boxes) == 1:
            return [(0, ONLY), *((0, words) for words in PLACES)]
        centres, found = (boxes[:, :2] + boxes[:, 2:]) / 2, []
        for words, (axis, sign) in PLACES.items() if len(boxes) else ():
            order = np.argsort(sign * centres[:, axis])
            if abs(np.diff(centres[order[:2], axis])[0]) >= MARGIN:
                found.append((int(order[0]), words))
        return found

    def attribute(self, entity: Entity) -> str | None:
        """The main colour of a flag, or whether a painting is 'tall' or 'wide'; None if unclear."""
        if entity.id not in self.seen:
            if len(self.seen) > 4096:  # variants are without end
                self.seen.clear()
            if entity.kind == 'flag':
                self.seen[entity.id] = dominant_colour(self.renderer.picture(entity.id)[1])
            else:
                self.seen[entity.id] = (
                    None if 0.8 < entity.aspect < 1.25 else 'tall' if entity.aspect < 1 else 'wide'
                )
        return self.seen[entity.id]

    def attributes(self, entities: Iterable[str]) -> Int[np.ndarray, ' n']:
        """The numbers in ATTRIBUTES of what entities look like, −1 where that is not clear."""
        seen = (self.attribute(self.renderer.entity(name)) for name in entities)
        return np.array(
            [-1 if attribute is None else ATTRIBUTES.index(attribute) for attribute in seen],
            np.int32,
        )

    def attribute_question(
        self, rng: np.random.Generator, entity: Entity, place: str, options: float
    ) -> AttributeQuestion | None:
        """The main colour of a flag or the shape of a painting, if it has a clear one.

        Args:
            rng: the only source of randomness.
            entity: the object.
            place: words that single it out.
            options: how often a colour is to be chosen from lettered ones.
        """
        attribute = self.attribute(entity)
        if attribute is None:
            return None
        if entity.kind != 'flag':
            answer = 'yes' if attribute == 'tall' else 'no'
            return AttributeQuestion(
                'shape', pick(rng, TALLER.phrasings).format(f'the painting {place}'), answer, answer
            )
        asked = pick(rng, COLOUR.phrasings).format(f'the flag {place}'), attribute
        if rng.random() < options:
            others = rng.permutation([name for name in NAMES if name != attribute])[:3]
            asked = with_options(rng, *asked, others)
        return AttributeQuestion('colour', *asked, attribute)

    def pairs(
        self,
        rng: np.random.Generator,
        kind: str,
        entities: list[str],
        boxes: np.ndarray,
        cloze: bool,
        attribute_focus: bool,
    ) -> list[tuple[str, str]]:
        """Questions about a view with their answers.

        Args:
            rng: the only source of randomness.
            kind: of the scene, 'map' or 'wall'.
            entities: that the view shows.
            boxes: of them, fractions of the view.
            cloze: places within longer questions.
            attribute_focus: mostly colours and shapes.
        """
        noun, count = SCENE_KINDS[kind], len(entities)
        how_many = (pick(rng, COUNT.phrasings).format(noun), str(count))
        pairs = [how_many] if rng.random() < 0.5 else []
        places, centres = self.places(boxes), (boxes[:, :2] + boxes[:, 2:]) / 2
        if not places:
            return pairs or [how_many]
        shown = [self.renderer.entity(name) for name in entities]
        where_until, part_until = (0.25, 0.3) if attribute_focus else (0.65, 0.75)
        options = 0.5 if cloze else 0.0
        telling = [place for place in places if self.attribute(shown[place[0]])]
        for _ in range(4 * self.questions):
            if len(pairs) == self.questions:
                break
            choice, pair = rng.random(), None
            among = telling if attribute_focus and telling and choice >= part_until else places
            index, words = pick(rng, among)
            entity = shown[index]
            if choice < where_until:
                where = f'Where is the {noun} {words}?'
                box = write_box(loose_box(boxes[index]))
                if cloze and rng.random() < 0.7:
                    fact = pick(rng, FACT_FIELDS[entity.kind])
                    asked = pick(rng, fact.phrasings).format(thing(entity.kind, entity.noun, words))
                    if rng.random() < 0.5:
                        where = f'{asked} Where is it?'
                    else:
                        where, seen = asked, {'key': fact.name, 'noun': noun, 'place': words}
                        box = pick(rng, POINTED).format(box=box, **seen)
                pair = where, box
            elif choice < part_until:
                pair = (
                    f'In which part of the picture is the {noun} {words}?',
                    part_of_picture(*centres[index]),
                )
            elif attribute := self.attribute_question(rng, entity, words, options):
                pair = attribute.question, attribute.answer
            if pair and pair not in pairs:
                pairs.append(pair)
        return pairs or [how_many]


def _in_sentence(rng: np.random.Generator, question: str, answer: str) -> tuple[str, str]:
    """The question, and its answer in a sentence; of options the chosen one's words."""
    option = re.search(rf'^{re.escape(answer)}\. (.*)$', question, re.MULTILINE)
    return question, pick(rng, IN_SENTENCES).format(seen=option[1] if option else answer)


def part_of_picture(x: float, y: float) -> str:
    """The name of one of nine parts, such as 'upper left' or 'centre'."""
    row = ('upper', 'middle', 'lower')[min(int(y * 3), 2)]
    column = ('left', 'centre', 'right')[min(int(x * 3), 2)]
    return f'{row} {column}'
