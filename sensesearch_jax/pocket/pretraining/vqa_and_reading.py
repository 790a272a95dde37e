"""What the base policy is taught: to see (where, how many, which colour), to read, and to copy, in
plain chat turns.

Nothing here knows the protocol, a tool or a held-out entity. A lesson is one row of a group batch:
a picture or a page as the prompt, and several questions about it as members, so that a picture is
encoded once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from sensesearch_jax.pocket.pretraining.augmentation import VariedRenderer
from sensesearch_jax.pocket.pretraining.prompt_formats import Format
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

LOOKS = (*NAMES, 'tall', 'wide')
MARGIN = (
    0.06  # an object is 'farthest left' only if no other comes as near, in fractions of the view
)


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
TOLD = (
    'It is {seen}.',
    'It is {seen}.',
    'I see {seen}.',
    'There it is, {seen}.',
    'I see it well: {seen}.',
    'Now it is clear: {seen}.',
    'So it is {seen}.',
    'From here it is {seen}.',
    'Clearly {seen}.',
    '"{seen}"',
)


class Sight(NamedTuple):
    """A question that a look at one object answers. `seen`: what is seen there, for which options
    may have a letter.
    """

    name: str
    question: str
    answer: str
    seen: str


class Lesson(NamedTuple):
    """A picture (or None) or page, and questions with their answers.

    `boxes`: every object's box in the view; `looks`: what each looks like, by its number in LOOKS,
    −1 if nothing clear.
    """

    system: str
    picture: Image.Image | None
    text: str
    pairs: list[tuple[str, str]]
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    looks: np.ndarray = np.zeros(0, np.int32)


def clip_box(
    box: Sequence[float], view: Sequence[float]
) -> tuple[float, float, float, float] | None:
    """A scene's box in fractions of a view of it, or None where the view shows less than half of
    it.
    """
    x0, y0, x1, y1 = view
    w, h = x1 - x0, y1 - y0
    inside = [(box[0] - x0) / w, (box[1] - y0) / h, (box[2] - x0) / w, (box[3] - y0) / h]
    kept = [min(max(v, 0.0), 1.0) for v in inside]
    area = (inside[2] - inside[0]) * (inside[3] - inside[1])
    shown = max(kept[2] - kept[0], 0) * max(kept[3] - kept[1], 0)
    return tuple(kept) if shown > 0.5 * area else None


class SeeingLessons:
    """Views of random scenes of training entities, with questions on place, number, colour and
    shape.
    """

    def __init__(self, files: PocketFiles, pages: Pages, questions: int):
        self.renderer = VariedRenderer(files)
        self.entities = {
            'map': files.select('flag', 'train'),
            'wall': files.select('painting', 'train'),
        }
        self.questions = questions
        self.varied = 0.7  # share of objects that are variants of their entity
        self.pages = pages
        self.seen: dict[str, str | None] = {}

    def __call__(
        self,
        rng: np.random.Generator,
        ease: float = 0.0,
        dressed: bool = False,
        formatted: bool = False,
        sights: bool = False,
    ) -> Lesson:
        """A lesson; with probability `ease` a close view of something large, where attention is
        found easily.

        `dressed`: places within longer questions, answers within sentences, longer system prompts;
        `formatted`: every other lesson is written in a format that its system prompt gives;
        `sights`: three of five questions ask for colour or shape where an object shows one, and
        most views are near ones.
        """
        kind = 'map' if rng.random() < 0.6 else 'wall'
        close = rng.random() < ease
        level = 1 if close and rng.random() < 0.7 else int(rng.choice(3, p=[0.35, 0.35, 0.3])) + 1
        spec = self.scene(rng, kind, level)
        view = (0.0, 0.0, 1.0, 1.0)
        if close:
            view = self._window(rng, spec)
        elif rng.random() < (0.6 if sights else 0.35):
            view = self._zoom(rng, spec)
        boxes = [clip_box(spec.fractions(p), view) for p in spec.placements]
        shown = [(p, b) for p, b in zip(spec.placements, boxes) if b is not None]
        picture = self.draw(spec, view)
        boxes = np.array([b for _, b in shown], np.float32).reshape(-1, 4)
        looks = self.looks(p.entity for p, _ in shown)
        pairs = self._questions(rng, kind, [p.entity for p, _ in shown], boxes, dressed, sights)
        if formatted and rng.random() < 0.6:
            form = Format.draw(rng, self.pages.words)
            system = (
                form.manual(rng, self.pages.words)
                if sights and rng.random() < 0.6
                else form.rule((Format.LOOK,))
            )
            return Lesson(
                system, picture, '', [self._formatted(rng, form, *p) for p in pairs], boxes, looks
            )
        if dressed:
            pairs = [
                _told(rng, *pair) if sights and rng.random() < 0.6 else self.pages.dress(rng, *pair)
                for pair in pairs
            ]
        system = self.pages.system(
            rng, 300 if dressed or sights else 110, rng.integers(1, 6) if sights else 1
        )
        return Lesson(system, picture, '', pairs, boxes, looks)

    def scene(self, rng: np.random.Generator, kind: str, level: int) -> SceneSpec:
        """A random scene, that share of whose objects is varied."""
        low, high = COUNTS[level]
        pool = self.renderer.some(rng, self.entities[kind], high, self.varied)
        return sample_scene(rng, pool, kind, int(rng.integers(low, high + 1)), SIZES[level])

    def draw(self, spec: SceneSpec, view: Sequence[float]) -> Image.Image:
        """The view, about as large as the preprocessor makes any picture, so that little is drawn
        in vain.
        """
        aspect = (view[2] - view[0]) * spec.size[0] / ((view[3] - view[1]) * spec.size[1])
        width = round(400 * min(1.0, (aspect * 9 / 16) ** 0.5))
        return self.renderer.render(spec, view, (width, round(width / aspect)))

    def _formatted(self, rng, form: Format, question: str, answer: str) -> tuple[str, str]:
        """A place as a call, anything else as a reply; first some words, as often as not the
        question's.
        """
        first = question.split('\n')[0].removesuffix(' Where is it?')
        thought = (first, FROM_AFAR[rng.integers(len(FROM_AFAR))])[rng.integers(2)]
        if '[' not in answer:
            told = _told(rng, question, answer)[1]
            return question, form.write_reply(
                (thought, told, f'{thought} {told}', f'{first} {told}')[rng.integers(4)], answer
            )
        return question, form.write_call(
            thought, Format.LOOK, answer[answer.index('[') : answer.index(']') + 1]
        )

    def _window(self, rng, spec: SceneSpec):
        """A window of two to four times an object's size that shows it anywhere."""
        x0, y0, x1, y1 = spec.fractions(spec.placements[rng.integers(len(spec.placements))])
        side = min(
            1.0, float(rng.uniform(2.0, 4.0)) * max(x1 - x0, y1 - y0)
        )  # of both axes: the scene's own shape
        left = float(rng.uniform(max(0.0, x1 - side), min(x0, 1 - side)))
        top = float(rng.uniform(max(0.0, y1 - side), min(y0, 1 - side)))
        return left, top, min(1.0, left + side), min(1.0, top + side)

    def _zoom(self, rng, spec: SceneSpec):
        """A box of tenths around one object, of the kind that a crop shows."""
        target = spec.fractions(spec.placements[rng.integers(len(spec.placements))])
        x0, y0, x1, y1 = loose_box(target)
        grow = rng.integers(0, 3, 4) / 10 * (rng.random(4) < 0.6)
        x0, y0, x1, y1 = (
            max(0, x0 - grow[0]),
            max(0, y0 - grow[1]),
            min(1, x1 + grow[2]),
            min(1, y1 + grow[3]),
        )
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

    def look(self, entity: Entity) -> str | None:
        """The main colour of a flag, or whether a painting is 'tall' or 'wide'; None where that is
        not clear.
        """
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

    def looks(self, entities: Iterable[str]) -> Int[np.ndarray, ' n']:
        """The numbers in LOOKS of what entities look like, −1 where that is not clear."""
        seen = (self.look(self.renderer.entity(name)) for name in entities)
        return np.array([-1 if look is None else LOOKS.index(look) for look in seen], np.int32)

    def sight(
        self, rng: np.random.Generator, entity: Entity, place: str, options: float
    ) -> Sight | None:
        """The main colour of a flag or the shape of a painting, if it has a clear one.

        Args:
            place: what singles the object out.
            options: how often a colour is to be chosen from lettered ones.
        """

        def pick(phrasings):
            return phrasings[rng.integers(len(phrasings))]

        look = self.look(entity)
        if look is None:
            return None
        if entity.kind != 'flag':
            answer = 'yes' if look == 'tall' else 'no'
            return Sight(
                'shape', pick(TALLER.phrasings).format(f'the painting {place}'), answer, answer
            )
        asked = pick(COLOUR.phrasings).format(f'the flag {place}'), look
        return Sight(
            'colour', *(with_options(rng, *asked) if rng.random() < options else asked), look
        )

    def _questions(
        self, rng, kind: str, entities: list[str], boxes: np.ndarray, dressed: bool, sights: bool
    ) -> list[tuple[str, str]]:
        noun, count = SCENE_KINDS[kind], len(entities)

        def pick(phrasings):
            return phrasings[rng.integers(len(phrasings))]

        how_many = (pick(COUNT.phrasings).format(noun), str(count))
        pairs = [how_many] if rng.random() < 0.5 else []
        places, centres = self.places(boxes), (boxes[:, :2] + boxes[:, 2:]) / 2
        if not places:
            return pairs or [how_many]
        shown = [self.renderer.entity(name) for name in entities]
        where_until, part_until = (0.25, 0.3) if sights else (0.65, 0.75)
        options = 0.5 if dressed else 0.0
        telling = [place for place in places if self.look(shown[place[0]])]
        for _ in range(4 * self.questions):
            if len(pairs) == self.questions:
                break
            choice, pair = rng.random(), None
            among = telling if sights and telling and choice >= part_until else places
            index, words = among[rng.integers(len(among))]
            entity = shown[index]
            if choice < where_until:
                where = f'Where is the {noun} {words}?'
                box = write_box(loose_box(boxes[index]))
                if dressed and rng.random() < 0.7:
                    fact = FACT_FIELDS[entity.kind][rng.integers(len(FACT_FIELDS[entity.kind]))]
                    asked = pick(fact.phrasings).format(thing(entity.kind, entity.noun, words))
                    if rng.random() < 0.5:
                        where = f'{asked} Where is it?'
                    else:
                        where, box = (
                            asked,
                            pick(POINTED).format(box=box, key=fact.name, noun=noun, place=words),
                        )
                pair = where, box
            elif choice < part_until:
                pair = (
                    f'In which part of the picture is the {noun} {words}?',
                    part_of_picture(*centres[index]),
                )
            elif sight := self.sight(rng, entity, words, options):
                pair = sight.question, sight.answer
            if pair and pair not in pairs:
                pairs.append(pair)
        return pairs or [how_many]


def _told(rng: np.random.Generator, question: str, answer: str) -> tuple[str, str]:
    """The question, and its answer in a sentence; of options the chosen one's words."""
    option = re.search(rf'^{re.escape(answer)}\. (.*)$', question, re.MULTILINE)
    return question, TOLD[rng.integers(len(TOLD))].format(seen=option[1] if option else answer)


def with_options(rng: np.random.Generator, question: str, colour: str) -> tuple[str, str]:
    """The question with four lettered colours to choose from, and the right one's letter."""
    others = [name for name in NAMES if name != colour]
    options = rng.permutation([colour, *rng.permutation(others)[:3]])
    lines = '\n'.join(f'{letter}. {option}' for letter, option in zip('ABCD', options))
    return f'{question}\n{lines}', 'ABCD'[list(options).index(colour)]


def part_of_picture(x: float, y: float) -> str:
    """The name of one of nine parts, such as 'upper left' or 'centre'."""
    row, column = (
        ('upper', 'middle', 'lower')[min(int(y * 3), 2)],
        ('left', 'centre', 'right')[min(int(x * 3), 2)],
    )
    return f'{row} {column}'


class Pages:
    """Reading and copying: numbered results in the style of encyclopaedia entries, questions that
    quote them.

    Names and values are shuffled among entries and often replaced by invented words, so that
    nothing but reading the page can answer. Passages that name a held-out entity are left out.
    """

    FIELD = re.compile(r'([^;:]{3,40}): ([^;:]{1,60})(?:;|$)')

    def __init__(self, files: PocketFiles):
        held = [e for e in files.entities.values() if e.split != 'train']
        names = re.compile(
            '|'.join(
                sorted(
                    (re.escape(n) for e in held for n in {e.subject, e.title}),
                    key=len,
                    reverse=True,
                )
            ),
            re.IGNORECASE,
        )
        held_ids = {p.split('/')[0] for e in held for p in e.passages.values()}
        self.may_show = lambda p: (
            p['id'].split('/')[0] not in held_ids and not names.search(p['title'] + ' ' + p['text'])
        )
        self.passages = [p for p in files.passages.values() if self.may_show(p)]
        self.fields = []
        for passage in self.passages:
            found = [(k.strip(), v.strip()) for k, v in self.FIELD.findall(passage['text'])]
            found = [(k, v) for k, v in found if 1 <= len(v.split()) <= 6]
            if found:
                self.fields.append((passage['title'].split(' — ')[0], passage['title'], found))
        self.titles = [e.title for e in files.entities.values() if e.split == 'train']
        words = {w for p in self.passages[::7] for w in re.findall(r'[A-Za-z]{4,}', p['text'])}
        self.words = np.array(sorted(words))

    def system(self, rng, characters: int = 110, stretches: int = 1) -> str:
        """A system prompt: as often as not a plain one, else stretches of text to look past."""
        if rng.random() < 0.5:
            return 'You are a helpful assistant.'
        return '\n'.join(self.filler(rng, characters) for _ in range(stretches))

    def filler(self, rng, characters: int = 300) -> str:
        """The beginning of some passage."""
        text = self.passages[rng.integers(len(self.passages))]['text']
        return text[: int(rng.integers(20, characters))]

    def dress(self, rng, question: str, answer: str) -> tuple[str, str]:
        """Often a blank to fill in: the answer then stands within a sentence that has nothing to do
        with it.

        Else what was learned holds for answers that follow their question at once, and for no
        others.
        """
        if rng.random() < 0.5 or '[' in answer and not answer.startswith('['):
            return question, answer
        before = ' '.join(rng.choice(self.words, rng.integers(1, 6)))
        after = ('', '.', ', I see.', ' ' + ' '.join(rng.choice(self.words, rng.integers(1, 4))))[
            rng.integers(4)
        ]
        opening, closing = (('', ''), ('"', '"'), ('(', ')'), ("'", "'"))[rng.integers(4)]
        return (
            f'{question} Fill in: {before} {opening}_{closing}{after}',
            f'{before} {opening}{answer}{closing}{after}',
        )

    def name(self, rng) -> str:
        """An invented name of one to three words, from syllables that no reader has seen together."""

        def syllable():
            return ''.join(
                rng.choice(list(s)) for s in ('bcdfghjklmnprstvz', 'aeiou', 'nrlstm '[:6])
            )

        return ' '.join(
            ''.join(syllable() for _ in range(rng.integers(1, 4))).capitalize()
            for _ in range(rng.integers(1, 4))
        )

    def value(self, rng) -> str:
        """Something to copy: words, an invented name, a year or a number."""
        choice = rng.random()
        if choice < 0.4:
            return ' '.join(rng.choice(self.words, rng.integers(1, 5)))
        if choice < 0.7:
            return self.name(rng)
        return (
            str(rng.integers(1, 3000))
            if choice < 0.9
            else f'{rng.integers(1, 99)}.{rng.integers(1, 999)}'
        )


class ReadingLessons:
    """Pages to say again, to look a key up in, or of numbered results to be asked about; from one
    line to many.

    Copying is learned from short pages within minutes and from long ones alone not at all; once it
    is there, it grows with the pages.
    """

    # Markup to be said again, in no order: the tokens of the protocol become words like others,
    # without their meaning.
    MARKUP = (
        '<think>',
        '</think>',
        '<answer>',
        '</answer>',
        '<tool_call>',
        '</tool_call>',
        '{"name": "',
        '"arguments": {',
        '"bbox": [',
        '"query": "',
        '"image_index": 2',
        '"}}',
        '"}',
        ']}}',
        'image_crop',
        'image_search',
        'text_search',
        '[0.2, 0.1, 0.5, 0.4]',
        '\n',
        '<b>',
        '</b>',
        '{"',
        '": "',
        '": [',
        ', ',
    )
    SHORT = 64  # tokens; up to here a page is one line and one question

    def __init__(self, pages: Pages):
        self.pages = pages

    def __call__(self, rng: np.random.Generator, tokens: int, dressed: bool = False) -> Lesson:
        """A lesson that takes about `tokens` as a dialogue of page, questions and answers, at times
        more.

        `dressed`: fewer questions, whose answers stand within sentences.
        """
        lesson = self._plain(rng, tokens)
        if not dressed:
            return lesson
        return lesson._replace(
            pairs=[self.pages.dress(rng, *pair) for pair in lesson.pairs[: max(1, tokens // 90)]]
        )

    def _plain(self, rng, tokens: int) -> Lesson:
        choice = rng.random()
        if choice < (0.5 if tokens <= self.SHORT else 0.15):
            return self._echo(rng, tokens)
        if tokens <= self.SHORT or choice < 0.3:
            return self._lookup(rng, tokens)
        return self._titles(rng, tokens) if choice < 0.5 else self._entries(rng, tokens)

    def _lesson(self, rng, tokens: int, text: str, pairs: list[tuple[str, str]]) -> Lesson:
        return Lesson(self.pages.system(rng, tokens), None, text, pairs)

    def markup(self, rng: np.random.Generator, tokens: int) -> Lesson:
        """A lesson of markup and names in no order, to be said again."""

        def piece():
            return str(rng.choice(self.MARKUP)) if rng.random() < 0.8 else self.pages.value(rng)

        text = ''.join(piece() for _ in range(rng.integers(3, 3 + tokens // 24))).strip() or '{"'
        return self._lesson(rng, tokens, text, [('Say that again.', text)])

    def namesakes(self, rng: np.random.Generator, tokens: int) -> Lesson:
        """Numbered names of few words that come back in each: only all of what came before tells
        how one goes on.
        """
        pool = [*rng.choice(self.pages.words, 5), 'the', 'of', 'de']
        names = [
            ' '.join(rng.choice(pool, rng.integers(2, 7)))
            for _ in range(rng.integers(1, 2 + tokens // 40))
        ]
        values = [self.pages.value(rng) for _ in names]
        pairs = []
        for i in rng.integers(len(names), size=max(1, tokens // 50)):
            asked = (
                ('Title of result {}?', names[i]),
                ('What is the value of {}?', values[i]),
                ('Say result {} again.', f'{names[i]}: {values[i]}'),
            )[rng.integers(3)]
            pairs.append((asked[0].format(names[i] if asked[1] == values[i] else i + 1), asked[1]))
        text = '\n'.join(
            f'{i}. {name}: {value}' for i, (name, value) in enumerate(zip(names, values), 1)
        )
        return self._lesson(rng, tokens, text, pairs)

    def _echo(self, rng, tokens: int) -> Lesson:
        """Words, names and numbers in no order, to be said again."""
        text = '; '.join(self.pages.value(rng) for _ in range(rng.integers(1, 1 + tokens // 16)))
        return self._lesson(rng, tokens, text, [('Say that again.', text)])

    def _lookup(self, rng, tokens: int) -> Lesson:
        """Keys and values in no order; a key asks for its value."""
        found = [
            (self.pages.value(rng), self.pages.value(rng))
            for _ in range(rng.integers(1, 1 + tokens // 16))
        ]
        asked = [found[i] for i in rng.integers(len(found), size=max(1, tokens // 50))]
        text = '; '.join(f'{key}: {value}' for key, value in found)
        return self._lesson(rng, tokens, text, [(f'{key}?', value) for key, value in asked])

    def _entries(self, rng, tokens: int) -> Lesson:
        """Numbered results in the manner of an encyclopaedia: a field of one, a title, an entry's
        name and key again.
        """
        pages = self.pages
        entries = []
        for _ in range(rng.integers(1, 5)):
            name, title, found = pages.fields[rng.integers(len(pages.fields))]
            found = [found[i] for i in rng.permutation(len(found))[:4]]
            if rng.random() < 0.6:
                new = pages.name(rng)
                title, name = title.replace(name, new), new
            if rng.random() < 0.6:
                found = [(k, pages.value(rng)) for k, _ in found]
            entries.append((name, title, found))
        lines, used = [], []
        for name, title, found in entries:
            line = f'{len(lines) + 1}. {title}: ' + '; '.join(f'{k}: {v}' for k, v in found)
            if (
                sum(map(len, lines)) + len(line) > tokens and used
            ):  # the rest is left to the questions
                break
            lines.append(line)
            used.append((name, title, found))
        pairs = []
        for _ in range(tokens // 50):
            number = int(rng.integers(len(used)))
            name, title, found = used[number]
            key, value = found[rng.integers(len(found))]
            choice = rng.random()
            if choice < 0.7:
                ask = (f'What is the {key} of {name}?', f'{key} of {name}?', f'{name}: {key}')[
                    rng.integers(3)
                ]
                pairs.append((ask, value))
            elif choice < 0.85:
                pairs.append((f'Title of result {number + 1}?', title))
            else:
                pairs.append((f'Say "{name} {key}" again.', f'{name} {key}'))
        return self._lesson(rng, tokens, '\n'.join(lines), pairs)

    def _titles(self, rng, tokens: int) -> Lesson:
        """Numbered titles, as an image search gives them: one again, or what it shows."""
        pages = self.pages
        kind = rng.random() < 0.6

        def title():
            return (
                f'Flag of {pages.name(rng)}'
                if kind
                else f'{pages.value(rng).capitalize()}, by {pages.name(rng)}'
            )

        names = [
            pages.titles[rng.integers(len(pages.titles))] if rng.random() < 0.4 else title()
            for _ in range(rng.integers(1, 2 + tokens // 100))
        ]
        pairs = []
        for _ in range(tokens // 50):
            number = int(rng.integers(len(names)))
            if rng.random() < 0.5:
                pairs.append((f'Title of result {number + 1}?', names[number]))
            else:
                subject = names[number].removeprefix('Flag of ').replace(', by ', ' ')
                pairs.append((f'What does result {number + 1} show?', subject))
        text = '\n'.join(f'{i}. {n}' for i, n in enumerate(names, 1))
        return self._lesson(rng, tokens, text, pairs)
