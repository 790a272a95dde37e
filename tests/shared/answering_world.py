"""A tool server in miniature that knows one picture, questions about it, and shorthands of cold-start tests."""

import json

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.tool_client import Match, Passage
from sensesearch_jax.agent.trajectory import ImageRef, Question
from sensesearch_jax.cold_start import validation
from sensesearch_jax.pocket.expert.scripted import ScriptedExpert as Scripted
from sensesearch_jax.rewards.crop_geometry import WHOLE, absolute, holds, loose_box
from sensesearch_jax.rewards.scorer import Scorer

BOX = (0.42, 0.31, 0.45, 0.35)
TRUTH = {'box': BOX, 'title': 'Flag of Chad', 'query': 'Chad capital', 'field': 'capital'}
SEARCH = Question(
    's',
    'The flag north-east of the others: its capital?',
    ('map.png',),
    ("N'Djamena",),
    category='search',
    source='pocket',
    difficulty='2',
    truth=TRUTH,
)
CHOICE = Question(
    'c',
    'The only flag: its capital?',
    ('map.png',),
    ('B',),
    ('Niamey', "N'Djamena"),
    category='search',
    source='pocket',
    difficulty='2',
    truth=TRUTH,
)
ONLY = Question(
    'o',
    'The capital of this flag?',
    ('flag.png',),
    ("N'Djamena",),
    category='search_only',
    source='pocket',
    difficulty='1',
    truth={**TRUTH, 'box': None},
)
LOOK = Question(
    'p',
    'What colour is the painting?',
    ('map.png',),
    ('B',),
    ('red', 'blue'),
    category='perception',
    source='pocket',
    difficulty='1',
    truth={'box': BOX},
)


class World:
    """A tool server in miniature: knows which part of the picture each image shows, finds what is
    in it."""

    def __init__(self, reach=0.5, first_rank=1):
        self.frames = {'whole': WHOLE}
        self.reach = reach  # image search finds the object in parts of at most this width
        self.first_rank = first_rank
        self.fail = None

    def upload(self, path):
        return self.fail or ImageRef('whole', 3840, 2160)

    def image(self, sha256):
        return self.fail or b'\x89PNG' + sha256.encode()

    def crop(self, sha256, bbox):
        frame = absolute(bbox, self.frames[sha256])
        name = 'crop' + json.dumps(frame)
        self.frames[name] = frame
        return self.fail or ImageRef(name, 100, 100)

    def image_search(self, sha256, top_k=5):
        frame = self.frames[sha256]
        titles = ['Flag of Mali', 'Flag of Peru', 'Flag of Cuba']
        if holds(frame, BOX) and frame[2] - frame[0] <= self.reach:
            titles.insert(self.first_rank - 1, 'Flag of Chad')
        return self.fail or [Match(title, ImageRef(title, 64, 48), 1.0) for title in titles[:top_k]]

    def text_search(self, query, top_k=5):
        pages = {'Chad': "Capital: name: N'Djamena", 'Mali': 'Capital: name: Bamako'}
        hits = [Passage(name, text, 1.0) for name, text in pages.items() if name in query]
        return self.fail or hits or [Passage('Mali', pages['Mali'], 0.1)]


def environment(protocol=DEFAULT, tools=TOOLS, **world):
    return Environment(World(**world), protocol, tools, ObservationLimits(thumbnails=False))


def ScriptedExpert(rng, protocol=DEFAULT, tools=TOOLS, **shares):
    return Scripted(rng, protocol, tools, **shares)


def scorer_of(protocol=DEFAULT, judge=None):
    return Scorer(protocol, judge, prices={}, format_weight=0.5, evidence_weight=0.0)


def validate(trajectory, room=None, scorer=scorer_of()):
    return validation.validate(trajectory, scorer, room)


def kinds(trajectory):
    return [type(turn.action) for turn in trajectory.turns]


LOOSE = ImageCrop(loose_box(BOX))
