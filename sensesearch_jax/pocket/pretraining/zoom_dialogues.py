"""Zooms: dialogues that need a nearer look first, and get it as a second picture in a later turn.

What an agent needs of plain chat before a tool gives it pictures: to look at the picture that came
last, and to keep in mind what was asked of the first. The nearer look is often too wide, so that
the object lies anywhere in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from sensesearch_jax.pocket.pretraining.prompt_formats import Format
from sensesearch_jax.pocket.pretraining.visual_questions import (
    FROM_AFAR,
    IN_SENTENCES,
    POINTED,
    AttributeQuestion,
    VisualQuestions,
    clip_box,
)
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS, thing
from sensesearch_jax.rewards.crop_geometry import loose_box, write_box

SHOWN = ('', '', 'Here:', 'Nearer:', 'Picture 2', 'Look.')  # before the second picture
SEEN = (
    '{answer}',
    '{answer}',
    'It is {answer}.',
    '{key}: {answer}',
    'From here I see it: "{answer}"',
)
NEARER = ('Still small.', 'Nearer.', 'More of it, please.', 'I cannot tell yet.')
NAME_IT = ('There it is, whole.', 'What is it called?', 'Now for its name.', 'That is the one.')


class Zoom(NamedTuple):
    """A question, the box that is asked for, the picture of it, and what is said then.

    `right`: whether the box is the object's own, so that it should be imitated.
    """

    question: str
    first: str
    right: bool
    shown: str
    picture: Image.Image
    second: str


class ZoomExample(NamedTuple):
    """A scene with several zooms; `boxes`: every object's box in the scene; `attributes` as an
    `Example` has them.
    """

    system: str
    picture: Image.Image
    zooms: list[Zoom]
    boxes: np.ndarray
    attributes: np.ndarray


class ZoomDialogues:
    """Scenes of training entities with zooms into them, most of them in a format that the system
    prompt gives.
    """

    def __init__(self, vqa: VisualQuestions):
        self.vqa = vqa

    def __call__(
        self, rng: np.random.Generator, zooms: int, attribute_share: float = 0.6
    ) -> ZoomExample:
        """An example of so many zooms, that share of them for a colour or a shape, where the object
        has one.
        """
        vqa = self.vqa
        while True:
            kind = 'map' if rng.random() < 0.6 else 'wall'
            level = int(rng.integers(1, 4))
            spec = vqa.scene(rng, kind, level)
            boxes = np.array([spec.fractions(p) for p in spec.placements], np.float32)
            places = vqa.places(boxes)
            if places:
                break
        form = Format.draw(rng, vqa.pages.words) if rng.random() < 0.75 else None
        system = (
            vqa.pages.system(rng, 300, rng.integers(1, 6))
            if not form
            else form.manual(rng, vqa.pages.words)
            if rng.random() < 0.6
            else form.rule((Format.LOOK, Format.NAME))
        )
        found = [
            self._zoom(rng, spec, *places[rng.integers(len(places))], form, attribute_share)
            for _ in range(zooms)
        ]
        return ZoomExample(
            system,
            vqa.draw(spec, (0.0, 0.0, 1.0, 1.0)),
            found,
            boxes,
            vqa.attributes(p.entity for p in spec.placements),
        )

    def _zoom(
        self, rng, spec, index: int, words: str, form: Format | None, attribute_share: float
    ) -> Zoom:
        def pick(choices):
            return choices[rng.integers(len(choices))]

        placement = spec.placements[index]
        entity = self.vqa.renderer.entity(placement.entity)
        box = spec.fractions(placement)
        view = good = loose_box(box)
        if rng.random() < 0.5:
            low, high = rng.integers(0, 3, 2) / 10, rng.integers(0, 3, 2) / 10
            view = tuple(
                round(float(v), 6)
                for v in (*np.maximum(0, view[:2] - low), *np.minimum(1, view[2:] + high))
            )
        inner = write_box(loose_box(clip_box(box, view)))
        noun = 'flag' if entity.kind == 'flag' else 'painting'
        key, question, answer, seen = self._asked(rng, entity, words, attribute_share)
        afar, nearer = pick(FROM_AFAR), pick(NEARER)
        again, asked = rng.random() < 0.6, question.split('\n')[0]
        if form:
            first = form.write_call(
                pick((asked, afar, f'{asked} {afar}')), Format.LOOK, write_box(view)
            )
            before = pick(('', '', f'{asked} ', f'{afar} '))
            second = (
                form.write_reply(
                    before + pick((*IN_SENTENCES, 'Now it is clear.')).format(seen=seen), answer
                )
                if answer
                else form.write_call(nearer, Format.LOOK, inner)
                if again
                else form.write_call(pick(NAME_IT), Format.NAME)
            )
        else:
            first = pick(POINTED).format(box=write_box(view), key=key, noun=noun, place=words)
            second = (
                pick(SEEN).format(answer=answer, key=key)
                if answer
                else f'{nearer} {inner}'
                if again
                else pick(NAME_IT)
            )
        return Zoom(question, first, view == good, pick(SHOWN), self.vqa.draw(spec, view), second)

    def _asked(self, rng, entity, words: str, attribute_share: float) -> AttributeQuestion:
        """The question of a zoom; no answer where the nearer look does not give it."""
        if rng.random() < attribute_share and (
            attribute := self.vqa.attribute_question(rng, entity, words, options=0.4)
        ):
            return attribute
        fact = FACT_FIELDS[entity.kind][rng.integers(len(FACT_FIELDS[entity.kind]))]
        question = fact.phrasings[rng.integers(len(fact.phrasings))].format(
            thing(entity.kind, entity.noun, words)
        )
        return AttributeQuestion(fact.name, question, '', '')
