"""The command line with a toy policy, whose turns are taken for actions by chance, so that its
tools are called.

    python tests/shared/toy_policy.py --config=configs/rl.py --workdir=runs/toy --config.policy=DIR …

A random policy writes nothing that parses and earns nothing, and where all fail alike nothing is
learned. Here action and reward follow from the very tokens that were sampled, as in a real run.
Where the environment has TOY_TOOLS_S, each tool takes up to so many seconds.
`write_toy_policy` makes such a policy: for runs of many steps, and runs that are killed, in
seconds.
"""

from __future__ import annotations

import os
import runpy
import time
import zlib
from pathlib import Path
from unittest import mock

from absl import app

from sensesearch_jax import main
from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS, ParsedTurn
from sensesearch_jax.pocket.pretraining import initial_policy
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer
from sensesearch_jax.rewards.scorer import Scorer

CONFIGS = Path(__file__).parents[2] / 'configs'
ACTIONS = (
    TextSearch('a flag'),
    ImageSearch(),
    ImageCrop((0.0, 0.0, 0.5, 0.5)),
    ImageCrop((0.2, 0.2, 1.0, 1.0), 2),
    FormatError('no_action', 'No action.'),
    Answer('this'),
)
TURN = (
    '<think>The flag is small here. I crop it to see more.</think>\n<tool_call>\n{"name": "image_crop", '
    '"arguments": {"bbox": [0.1, 0.3, 0.4, 0.6]}}\n</tool_call><tool_response>\n1. Title: What is the '
    'capital of the country whose flag is farthest left?\n</tool_response>\n<answer></answer>'
)


def write_toy_policy(folder: Path, family: str = 'qwen2_5_vl', kv_heads: int = 1) -> None:
    """One layer of width 32 with random weights in a family; pictures become at most 12 visual tokens."""
    config = runpy.run_path(str(CONFIGS / 'base.py'))['get_config']()
    config.language.update(
        layers=1,
        width=32,
        mlp_width=32,
        heads=2,
        kv_heads=kv_heads,
        vocabulary=640,
        mrope_sections=(2, 2, 4),
    )
    config.vision.update(depth=1, width=16, mlp_width=16, heads=1, full_attention_blocks=(0,))
    config.update(max_pixels=28 * 28 * 12, family=family)

    # In the place of the pocket tokenizer, whose training reads the whole corpus.
    def quick(folder, pages, world, vocabulary):
        return train_tokenizer([DEFAULT.system_prompt(TOOLS), TURN] * 20, folder, vocabulary)

    with mock.patch.object(initial_policy, 'write_tokenizer', quick):
        initial_policy.write_first(folder, config, pages=None, world=None)


def by_chance(self, text):
    """In the place of `Environment.parse`."""
    return ParsedTurn('thought', ACTIONS[zlib.crc32(text.encode()) % len(ACTIONS)])


def slowly(self, action, images, execute=Environment.execute):
    """In the place of `Environment.execute`; the time follows from the action alone."""
    share = zlib.crc32(repr((action, images)).encode()) % 100 / 100
    time.sleep(share * float(os.environ.get('TOY_TOOLS_S', 0)))
    return execute(self, action, images)


def reward(self, trajectory, verdict, scored=Scorer.scored):
    """In the place of `Scorer.scored`, with a share by chance."""
    values, state = scored(self, trajectory, verdict)
    written = zlib.crc32(repr([turn.tokens for turn in trajectory.turns]).encode())
    return values | {'total': values['total'] + written % 100 / 100}, state


def replace() -> None:
    """Puts the toy's functions in their places."""
    Environment.parse, Environment.execute, Scorer.scored = by_chance, slowly, reward


if __name__ == '__main__':
    replace()
    app.run(main.guarded, flags_parser=main.parse_flags)
