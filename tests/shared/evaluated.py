"""Scored trajectories as an evaluation has them, without a policy."""

from sensesearch_jax.agent.actions import Answer, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.observations import NO_RESULTS
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)

PICTURE = ImageRef('a' * 64, 400, 300)


def question(number, source='hr_mmsearch', **fields):
    """A question of a set, by default about a picture of its own with the answer Paris."""
    fields = {'answers': ('Paris',), 'images': (f'{source}{number}.png',)} | fields
    return Question(f'q{number}', 'Which city is this?', source=source, **fields)


def turn(action, *parts, ok=True, seconds=0.0, tokens=3):
    """A turn; with parts, it was observed."""
    kind = {TextSearch: 'text_search', ImageSearch: 'image_search', ImageCrop: 'image_crop'}
    observation = None
    if parts:
        name = kind.get(type(action), 'tool_error') if ok else 'tool_error'
        observation = Observation(parts, ok, name, latency_s=seconds)
    return Turn([1] * tokens, [0.0] * tokens, '<think>so</think>', action, observation, [])


def found(query='a city'):
    """A text search that found something."""
    return turn(TextSearch(query), '1. Paris: a city', seconds=0.5)


def empty(query='a city'):
    """A text search that found nothing."""
    return turn(TextSearch(query), NO_RESULTS)


def answered(of, said='Paris', right=None, member=0, turns=(), state=SampleState.OK, **fields):
    """A trajectory that ends with an answer, right if it is Paris or as told; None: with none."""
    right = (said == 'Paris') if right is None else right
    last = [] if said is None else [turn(Answer(said))]
    reward = {'total': 1.5 * right, 'accuracy': float(right), 'format': 1.0}
    return Trajectory(of, member, 0, [*turns, *last], state, [], [PICTURE], reward, said, **fields)
