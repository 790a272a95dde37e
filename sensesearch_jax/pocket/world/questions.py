"""Makes the pocket world's questions and the scenes they are about."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world import question_templates
from sensesearch_jax.pocket.world.colours import NAMES, dominant_colour
from sensesearch_jax.pocket.world.files import Entity, PocketFiles
from sensesearch_jax.pocket.world.scenes import COUNTS, SIZES, Renderer, SceneSpec, sample_scene

KINDS = ('search', 'perception', 'search_only')
MARGIN = 0.08  # of the side: how far the object asked for lies beyond the next one
NOT_RECTANGULAR = ('flag-np',)  # the white around Nepal's flag is not part of it

SCENE_KINDS = {'map': 'flag', 'wall': 'painting'}


def singled_out(spec: SceneSpec) -> list[tuple[int, str]]:
    """(index of a placement, place words) for every object that words of place single out beyond
    doubt.

    An object is farthest left when both its centre and its left edge lie at least MARGIN of the
    scene's width to the left of every other's; likewise for the other directions. The only object
    of a scene is 'in the picture'.
    """
    if len(spec.placements) == 1:
        return [(0, question_templates.ONLY)]
    found = []
    boxes = np.array([placement.box for placement in spec.placements], float)
    for words, (axis, sign) in question_templates.PLACES.items():
        centre = sign * (boxes[:, axis] + boxes[:, axis + 2]) / 2
        edge = sign * boxes[:, axis if sign > 0 else axis + 2]
        first = int(np.argmin(centre))
        others = np.arange(len(boxes)) != first
        ahead = min(float(np.min(values[others]) - values[first]) for values in (centre, edge))
        if ahead >= MARGIN * spec.size[axis]:
            found.append((first, words))
    return found


class _Maker:
    """Draws questions of one kind; no fact, entity or answer is asked too often."""

    def __init__(self, files: PocketFiles, split: str, kind: str, seed: int):
        self.files, self.split, self.kind, self.seed = files, split, kind, seed
        self.rng = np.random.default_rng(
            [seed, zlib.crc32(split.encode()), zlib.crc32(kind.encode())]
        )
        self.renderer = Renderer(files)
        self.asked: Counter = Counter()  # (entity, field) and field
        self.answered: Counter = Counter()  # (field, answer)
        self.colours: dict[str, str | None] = {}

    def pick(self, items: Sequence):
        return items[int(self.rng.integers(len(items)))]

    def colour(self, entity: Entity) -> str | None:
        if entity.id not in self.colours:
            self.colours[entity.id] = dominant_colour(self.renderer.picture(entity.id)[1])
        return None if entity.id in NOT_RECTANGULAR else self.colours[entity.id]

    def shape(self, entity: Entity) -> str | None:
        return None if 0.8 < entity.aspect < 1.25 else 'yes' if entity.aspect < 1 else 'no'

    def admit(self, field: question_templates.Field, entity: str, answer: str, scene: set) -> bool:
        """Counts the question and says yes, unless its answer had its share or the scene has it
        already.

        Args:
            field: asked for.
            entity: its id.
            answer: to the question.
            scene: pairs of entity and fact that the scene has; gets this one.
        """
        if (entity, field.name) in scene or self.answered[field.name, answer] >= max(
            3, field.cap * (self.asked[field.name] + 4)
        ):
            return False
        scene.add((entity, field.name))
        self.asked[field.name] += 1
        self.asked[entity, field.name] += 1
        self.answered[field.name, answer] += 1
        return True

    def fact(self, entity: Entity, words: str, scene: set) -> dict | None:
        """A question for the least asked of the entity's facts.

        Args:
            entity: asked about.
            words: that name it in the question.
            scene: pairs of entity and fact that the scene has.
        """
        fields = [
            field
            for field in question_templates.FACT_FIELDS[entity.kind]
            if field.name in entity.facts
        ]
        order = self.rng.permutation(len(fields))
        for index in sorted(
            order, key=lambda i: (self.asked[entity.id, fields[i].name], self.asked[fields[i].name])
        ):
            field, answer = fields[index], entity.facts[fields[index].name]
            if self.admit(field, entity.id, answer, scene):
                return {
                    'text': self.pick(field.phrasings).format(words),
                    'answers': (answer, *entity.aliases.get(field.name, ())),
                    'truth': {
                        'entity': entity.id,
                        'title': entity.title,
                        'field': field.name,
                        'sought': field.sought,
                        'query': f'the {field.sought} of {entity.short_name}',
                        'passage': entity.passages[field.name],
                    },
                }
        return None

    def sight(self, spec: SceneSpec, scene: set) -> dict | None:
        """A question that the picture alone answers, and the index of its object if it has one."""
        noun = SCENE_KINDS[spec.kind]
        fields = [
            question_templates.COUNT,
            *(
                (question_templates.COLOUR, question_templates.COLOUR_CHOICE)
                if noun == 'flag'
                else (question_templates.TALLER,)
            ),
        ]
        field = min(fields, key=lambda one: self.asked[one.name] + self.rng.integers(8))
        if field is question_templates.COUNT:
            count = len(spec.placements)
            if not self.admit(field, '', str(count), scene):
                return None
            boxes = [list(spec.fractions(placement)) for placement in spec.placements]
            return {
                'text': self.pick(field.phrasings).format(noun),
                'answers': (str(count),),
                'truth': {
                    'entity': '',
                    'title': '',
                    'field': field.name,
                    'query': '',
                    'boxes': boxes,
                },
            }
        seen = self.shape if field is question_templates.TALLER else self.colour
        found = [
            (index, place, seen(self.files.entities[spec.placements[index].entity]))
            for index, place in singled_out(spec)
        ]
        found = [item for item in found if item[2] is not None]
        if not found:
            return None
        index, place, answer = self.pick(found)
        entity = self.files.entities[spec.placements[index].entity]
        choices = ()
        if field is question_templates.COLOUR_CHOICE:
            wrong = [name for name in NAMES if name != answer]
            choices = [answer, *(wrong[i] for i in self.rng.permutation(len(wrong))[:3])]
            choices = tuple(choices[i] for i in self.rng.permutation(4))
            answer = 'ABCD'[choices.index(answer)]
        if not self.admit(field, entity.id, answer, scene):
            return None
        return {
            'text': self.pick(field.phrasings).format(f'the {noun} {place}'),
            'answers': (answer,),
            'choices': choices,
            'index': index,
            'truth': {'entity': entity.id, 'title': entity.title, 'field': field.name, 'query': ''},
        }

    def of_scene(self, spec: SceneSpec, most: int) -> Iterator[dict]:
        """Up to `most` different questions about one scene."""
        scene: set = set()
        for _ in range(4 * most):
            if most == 0:
                return
            if self.kind == 'perception':
                draft = self.sight(spec, scene)
            else:
                places = singled_out(spec)
                if not places:
                    return
                index, place = self.pick(places)
                entity = self.files.entities[spec.placements[index].entity]
                draft = self.fact(
                    entity, question_templates.thing(entity.kind, entity.noun, place), scene
                )
                if draft:
                    draft['index'] = index
            if draft:
                most -= 1
                index = draft.pop('index', None)
                draft['truth']['box'] = (
                    [0.0, 0.0, 1.0, 1.0]
                    if index is None
                    else list(spec.fractions(spec.placements[index]))
                )
                yield draft

    def question(self, number: int, level: int, image: str, draft: dict) -> Question:
        """A question of the set.

        Args:
            number: in its set, part of the id.
            level: of difficulty, 1 to 3.
            image: content hash of the scene.
            draft: the other fields.
        """
        return Question(
            id=f'{self.split}-{self.kind}-{self.seed}-{number:05d}',
            images=(image,),
            category=self.kind,
            difficulty=str(level),
            source=self.files.name,
            **draft,
        )


def make_questions(
    files: PocketFiles,
    split: str,
    kind: str,
    count: int,
    seed: int,
    levels: Sequence[int] = (1, 2, 3),
) -> list[tuple[Question, SceneSpec | None]]:
    """Questions of one kind about entities of one split; the same arguments give the same
    questions.

    Args:
      files: the pocket data.
      split: 'train', 'validation' or 'test'; nothing of another split's entities appears, asked for
          or not.
      kind: 'search' (find the object, identify it, look its fact up), 'perception' (the picture
        holds the answer) or 'search_only' (the picture shows the entity alone).
      count: how many.
      seed: of the random choices.
      levels: difficulties to take in turn; see scenes.SIZES and scenes.COUNTS.

    Returns:
      (question, scene) pairs; up to three neighbours at levels 2 and 3, two at level 1, share a
      scene. The scene is None for 'search_only'. `truth` holds 'entity', 'box' (fractions), 'title',
      'query', 'field'; for facts also 'passage' (the id of the passage that states the answer), for counts
      'boxes' (of all objects).
    """
    if kind not in KINDS:
        raise ValueError(f'question kind {kind!r} is none of {", ".join(KINDS)}')
    maker, made, scenes = _Maker(files, split, kind, seed), [], 0
    pools = {
        scene_kind: files.select(entity_kind, split)
        for scene_kind, entity_kind in SCENE_KINDS.items()
    }
    for attempt in range(40 * count + 100):
        if len(made) >= count:
            return made
        level = levels[attempt % len(levels)]
        scene_kind = 'wall' if (attempt // len(levels)) % 2 else 'map'
        image = f'images/{split}-{kind}-{seed}-{scenes:05d}.jpg'
        if kind == 'search_only':
            entity = maker.pick(pools[scene_kind])
            draft = maker.fact(entity, question_templates.shown(entity.noun, entity.kind), set())
            drafts, spec, level = [], None, 1
            if draft:
                draft['truth']['box'] = [0.0, 0.0, 1.0, 1.0]
                drafts.append(draft)
        else:
            low, high = COUNTS[level]
            objects = int(maker.rng.integers(low, high + 1))
            spec = sample_scene(maker.rng, pools[scene_kind], scene_kind, objects, SIZES[level])
            drafts = list(maker.of_scene(spec, min(2 if level == 1 else 3, count - len(made))))
        made += [
            (maker.question(len(made) + i, level, image, draft), spec)
            for i, draft in enumerate(drafts)
        ]
        scenes += bool(drafts)
    raise UserError(
        f'only {len(made)} of {count} {kind} questions could be made from the {split} entities: ask for fewer'
    )
