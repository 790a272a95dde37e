"""Dialogues about a picture in Qwen's tool-call format with made-up tools: what is seen is answered, a
box is asked for, its picture comes as a tool's response, and a better box follows one that failed.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
from PIL import Image

from sensesearch_jax.agent.observations import NO_RESULTS
from sensesearch_jax.pocket.invented.names import pick
from sensesearch_jax.pocket.pretraining.example import Dialogue, Example, Turn
from sensesearch_jax.pocket.pretraining.option_dialogues import options_of, told
from sensesearch_jax.pocket.pretraining.tool_prompts import (
    Tool,
    ToolPrompt,
    answer,
    call,
    up_to_value,
)
from sensesearch_jax.pocket.pretraining.visual_questions import (
    FROM_AFAR,
    IN_SENTENCES,
    VisualQuestions,
)
from sensesearch_jax.pocket.world.files import Entity
from sensesearch_jax.pocket.world.question_templates import COUNT, FACT_FIELDS, thing
from sensesearch_jax.pocket.world.questions import SCENE_KINDS
from sensesearch_jax.pocket.world.scenes import SceneSpec
from sensesearch_jax.rewards.crop_geometry import WHOLE, Box, holds, loose_box, relative

NAME_IT = ('There it is.', 'What is it called?', 'Now for its name.', 'That is the one.')
LOOK_AGAIN = ('That was not it.', 'I look again.', 'A better box, then.', 'Nothing; nearer.')
USE = ('Use {0}.', 'Take {0} for it.', '{0} shows it nearer.', 'There is {0}.')
THEN = ('{0} and {1} help.', 'First {0}, then {1}.', 'Look with {0}; {1} knows it.')
COUNTED = ('I count the {noun}s. It is {count}.', 'There are {count}.', 'It is {count}.')
# Of looks: one that gives the answer, one that is shown to another tool, one that failed and is
# followed by a better one.
NEARER, SHOWN, FAILED = range(3)
SHARES = (0.4, 0.15, 0.45)
LEVELS = (0.1, 0.35, 0.55)  # of difficulty, where objects are counted
NEAR_SCENES = 32  # that near looks come back to; drawing takes as long as learning


class NearScene(NamedTuple):
    """A scene of near looks: boxes of its objects, those that words single out and that show a colour or
    shape, their pictures, and views that were drawn.
    """

    spec: SceneSpec
    boxes: np.ndarray
    places: list[tuple[int, str]]
    pictures: list[tuple[Entity, list[np.ndarray]]]
    views: dict[Box, Image.Image]


class PictureDialogues:
    """Dialogues about scenes.

    Args:
        vqa: draws scenes and knows what is asked about them.
    """

    def __init__(self, vqa: VisualQuestions):
        self.vqa = vqa
        self._near: list[NearScene] = []

    def __call__(self, rng: np.random.Generator, at_once: int, looks: int) -> Example:
        """A scene with dialogues, all with the same tools.

        Args:
            rng: the only source of randomness.
            at_once: dialogues of one turn, an answer or a box; they come first.
            looks: dialogues with one nearer look, a second picture.
        """
        vqa = self.vqa
        while True:
            spec = vqa.scene(rng, ('map', 'wall')[rng.random() < 0.4], int(rng.integers(1, 4)))
            boxes = np.array([spec.fractions(p) for p in spec.placements], np.float32)
            if places := vqa.places(boxes):
                break
        prompt = ToolPrompt.draw(rng, vqa.pages.words, ('box', 'none'), 1)
        dialogues = [self._at_once(rng, spec, boxes, prompt) for _ in range(at_once)]
        dialogues += [
            self._looking(rng, int(kind), spec, *pick(rng, places), prompt, {})
            for kind in rng.choice(3, looks, p=SHARES)
        ]
        return self._example(prompt.system(), spec, boxes, dialogues)

    def counts(self, rng: np.random.Generator, members: int) -> Example:
        """A scene, mostly of several objects: one dialogue counts them, the others ask for one.

        Args:
            rng: the only source of randomness.
            members: dialogues.
        """
        spec, boxes, counting = self._counted(rng)
        prompt = ToolPrompt.draw(rng, self.vqa.pages.words, ('box', 'none'), 1)
        dialogues = [counting]
        dialogues += [self._at_once(rng, spec, boxes, prompt) for _ in range(members - 1)]
        return self._example(prompt.system(), spec, boxes, dialogues)

    def count_alone(self, rng: np.random.Generator) -> Example:
        """A scene, mostly of several objects, that are counted behind a short system prompt."""
        spec, boxes, counting = self._counted(rng)
        return self._example(self.vqa.pages.system(rng, 110, 1), spec, boxes, [counting])

    def _counted(self, rng) -> tuple[SceneSpec, np.ndarray, Dialogue]:
        """A scene, the boxes of its objects, and a dialogue that counts them."""
        kind, level = ('map', 'wall')[rng.random() < 0.4], int(rng.choice(3, p=LEVELS)) + 1
        spec = self.vqa.scene(rng, kind, level)
        boxes = np.array([spec.fractions(p) for p in spec.placements], np.float32)
        noun = SCENE_KINDS[kind]
        asked = pick(rng, COUNT.phrasings).format(noun)
        return spec, boxes, Dialogue(asked, [Turn(counted(rng, noun, len(boxes)))])

    def _example(
        self, system: str, spec: SceneSpec, boxes: np.ndarray, dialogues: list[Dialogue]
    ) -> Example:
        """Dialogues about the whole of a scene."""
        attributes = self.vqa.attributes(p.entity for p in spec.placements)
        return Example(system, self.vqa.draw(spec, WHOLE), '', [], boxes, attributes, dialogues)

    def near(self, rng: np.random.Generator, members: int) -> Example:
        """A scene of which each dialogue looks at one object and says what it looks like; some count
        the objects before.

        Args:
            rng: the only source of randomness.
            members: dialogues, each with a second picture.
        """
        vqa = self.vqa
        if len(self._near) < NEAR_SCENES or rng.random() < 0.15:
            self._near.append(self._scene_to_look_at(rng))
            del self._near[:-NEAR_SCENES]
        spec, boxes, places, pictures, views = pick(rng, self._near)
        for entity, levels in pictures:
            vqa.renderer.keep(entity, levels)
        prompt = ToolPrompt.draw(rng, vqa.pages.words, ('box', 'none'), 1)
        noun = SCENE_KINDS[spec.kind]
        dialogues = []
        for _ in range(members):
            found = self._looking(rng, NEARER, spec, *pick(rng, places), prompt, views)
            if rng.random() < 0.25:
                asked = pick(rng, COUNT.phrasings).format(noun)
                said = counted(rng, noun, len(boxes))
                found = Dialogue(asked, [Turn(said, after=(found.question,)), *found.turns])
            dialogues.append(found)
        attributes = vqa.attributes(p.entity for p in spec.placements)
        picture = self._view(spec, WHOLE, views)
        return Example(prompt.system(), picture, '', [], boxes, attributes, dialogues)

    def _scene_to_look_at(self, rng) -> NearScene:
        vqa = self.vqa
        while True:
            spec = vqa.scene(rng, ('map', 'wall')[rng.random() < 0.25], int(rng.integers(1, 4)))
            boxes = np.array([spec.fractions(p) for p in spec.placements], np.float32)
            entities = [vqa.renderer.entity(p.entity) for p in spec.placements]
            if places := [p for p in vqa.places(boxes) if vqa.attribute(entities[p[0]])]:
                pictures = [(entity, vqa.renderer.picture(entity.id)) for entity in entities]
                return NearScene(spec, boxes, places, pictures, {})

    def _view(self, spec: SceneSpec, box: Box, views: dict[Box, Image.Image]) -> Image.Image:
        if box not in views:
            views[box] = self.vqa.draw(spec, box)
        return views[box]

    def _at_once(self, rng, spec: SceneSpec, boxes: np.ndarray, prompt: ToolPrompt) -> Dialogue:
        """A question that the picture answers, or a box."""
        entities = [p.entity for p in spec.placements]
        pairs = self.vqa.pairs(rng, spec.kind, entities, boxes, cloze=False, attribute_focus=True)
        question, said = pick(rng, pairs)
        looker = prompt.wanted[0]
        first = question.split('\n')[0]
        if said.isdigit():
            return Dialogue(question, [Turn(counted(rng, SCENE_KINDS[spec.kind], len(boxes)))])
        if not said.startswith('['):
            if options_of(question):
                return Dialogue(question, [Turn(answer(told(question, said), said))])
            sentence = pick(rng, IN_SENTENCES).format(seen=said)
            thought = pick(rng, (sentence, sentence, f'{first} {sentence}'))
            return Dialogue(question, [Turn(answer(thought, said))])
        planned = rng.random() < 0.5
        turn = call(pick(rng, (first, *FROM_AFAR)), looker, json.loads(said))
        asked = f'{question} {pick(rng, USE).format(looker.name)}' if planned else question
        return Dialogue(asked, [Turn(turn, '' if planned else up_to_value(turn, looker))])

    def _looking(
        self,
        rng,
        kind: int,
        spec: SceneSpec,
        index: int,
        words: str,
        prompt: ToolPrompt,
        views: dict[Box, Image.Image],
    ) -> Dialogue:
        """A question about one object that wants a nearer look."""
        placement, (looker, namer) = spec.placements[index], prompt.wanted
        box = spec.fractions(placement)
        entity = self.vqa.renderer.entity(placement.entity)
        asked = self.vqa.attribute_question(rng, entity, words, options=0.4)
        if kind != NEARER or asked is None:
            kind = kind if kind != NEARER else SHOWN
            fact = pick(rng, FACT_FIELDS[entity.kind])
            question = pick(rng, fact.phrasings).format(thing(entity.kind, entity.noun, words))
        else:
            question = asked.question
        planned = rng.random() < 0.5
        shown = question
        if planned:
            plan = pick(rng, USE) if kind == NEARER else pick(rng, THEN)
            shown += ' ' + plan.format(looker.name, namer.name)
        good = loose_box(box)
        view = poor_box(rng, good) if kind == FAILED or rng.random() < 0.3 else good
        thought = pick(rng, (question.split('\n')[0], *FROM_AFAR))
        look = call(thought, looker, list(view))
        begun = look if view != good else '' if planned else up_to_value(look, looker)
        turns = [Turn(look, begun, after=('Image 2:', self._view(spec, view, views)), of_tool=True)]
        if kind == NEARER:
            if options_of(question):
                sentence = told(question, asked.answer)
            else:
                sentence = pick(rng, IN_SENTENCES).format(seen=asked.seen)
            turns.append(Turn(answer(sentence, asked.answer)))
            return Dialogue(shown, turns)
        named = call(pick(rng, NAME_IT), namer, picture=2)
        if kind == SHOWN:
            turns.append(Turn(named, '' if planned else up_to_value(named, namer)))
            return Dialogue(shown, turns)
        turns.append(Turn(named, named, after=(NO_RESULTS,), of_tool=True))
        turns.append(self._better(rng, box, view, looker))
        return Dialogue(shown, turns)

    def _better(self, rng, box: Box, view: Box, looker: Tool) -> Turn:
        """A second box: within the first view where that holds the object, else of the original."""
        thought = pick(rng, LOOK_AGAIN)
        if holds(view, box):
            inner = loose_box(relative(box, view))
            turn = call(thought, looker, list(inner), picture=2)
        else:
            turn = call(thought, looker, list(loose_box(box)))
        return Turn(turn, up_to_value(turn, looker))


def counted(rng: np.random.Generator, noun: str, count: int) -> str:
    """A turn that says how many objects there are.

    Args:
        rng: the only source of randomness.
        noun: of the objects.
        count: of them.
    """
    thought = pick(rng, COUNTED).format(noun=noun, count=count)
    return answer(thought, str(count))


def poor_box(rng: np.random.Generator, good: Box) -> Box:
    """A box on the grid of tenths that is too loose, or moved so that it may cut into the object.

    Args:
        rng: the only source of randomness.
        good: the tight one.
    """
    size = [round(good[i + 2] - good[i], 6) for i in (0, 1)]
    if rng.random() < 0.5:
        grow = rng.integers(0, 4, 4) / 10
        low, high = np.maximum(0, good[:2] - grow[:2]), np.minimum(1, good[2:] + grow[2:])
    else:
        low = np.array(good[:2]) + rng.integers(-2, 3, 2) / 10
        low = np.clip(low, 0, 1 - np.array(size))
        high = low + size
    return tuple(round(float(v), 1) for v in (*low, *high))
