"""The command line, with turns of a random policy taken for actions by chance, so that its tools are called.

A random policy writes nothing that parses and earns nothing, and where all fail alike nothing is learned.
Here action and reward follow from the very tokens that were sampled, as in a real run.
"""

import zlib

from absl import app

from sensesearch_jax import main
from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import ParsedTurn
from sensesearch_jax.tasks import rl

ACTIONS = (
    TextSearch('a flag'),
    ImageSearch(),
    ImageCrop((0.0, 0.0, 0.5, 0.5)),
    ImageCrop((0.2, 0.2, 1.0, 1.0), 2),
    FormatError('no_action', 'No action.'),
    Answer('this'),
)


def by_chance(self, text):
    return ParsedTurn('thought', ACTIONS[zlib.crc32(text.encode()) % len(ACTIONS)])


def reward(trajectory, *arguments, scored=rl.trajectory_reward, **options):
    values, state = scored(trajectory, *arguments, **options)
    written = zlib.crc32(repr([turn.tokens for turn in trajectory.turns]).encode())
    return values | {'total': values['total'] + written % 100 / 100}, state


if __name__ == '__main__':
    Environment.parse = by_chance
    rl.trajectory_reward = reward
    app.run(main.guarded, flags_parser=main.parse_flags)
