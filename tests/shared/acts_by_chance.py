"""A policy whose every turn is made an action, and what a rollout of it leaves behind."""

import zlib

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS, ParsedTurn
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.rewards.scorer import Scorer

PREPROCESSOR = Preprocessor(min_pixels=28 * 28, max_pixels=28 * 28 * 20)
MEMBERS, TURN_TOKENS = 3, 7


def by_chance(text, answers=True):
    """An action that follows from the text that was sampled, so that a trajectory is its tokens'
    doing."""
    choice = zlib.crc32(text.encode())
    actions = [
        TextSearch(f'query {choice % 5}'),
        ImageSearch(1),
        ImageCrop((0.0, 0.0, 0.5, 0.5)),
        ImageCrop((0.25, 0.25, 1.0, 1.0), 2),
        FormatError('no_action', 'No action.'),
        Answer(f'{choice % 7}'),
    ]
    return actions[choice % (6 if answers else 5)]


class ScriptedEnvironment(Environment):
    """Takes each turn for what `act` says of its text."""

    def __init__(self, client, act=by_chance):
        super().__init__(client, DEFAULT, TOOLS, ObservationLimits(text_results=2, image_results=2))
        self.system_prompt, self.act = 'Act.', act

    def parse(self, text):
        return ParsedTurn('thought', self.act(text))


def essence(groups):
    """Everything of trajectories but clocks."""
    value = [[t.to_json() for t in group] for group in groups]
    for group in value:
        for trajectory in group:
            for turn in trajectory['turns']:
                turn['log_probs'] = None  # compared where they differ by rounding at most
                if turn['observation']:
                    turn['observation']['latency_s'] = 0
    return value


def scorer_of(judge):
    return Scorer(DEFAULT, judge, prices={}, format_weight=0.5, evidence_weight=0.0)
