"""A small machine whose programs take round times, and questions that are worked out by hand."""

import pytest
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.simulation.plans import Plan, PlannedGroup, PlannedTurn
from sensesearch_jax.simulation.rates import AT_BEST, CHIPS, Rates
from sensesearch_jax.simulation.run import Pod

SIZES = PolicySizes(
    VisionSizes(depth=2, width=16, mlp_width=16, heads=2, out_width=32, full_attention_blocks=(1,)),
    LanguageSizes(
        layers=2,
        width=32,
        mlp_width=32,
        heads=4,
        kv_heads=2,
        vocabulary=64,
        mrope_sections=(1, 1, 2),
    ),
    image_token=60,
    vision_start_token=61,
    vision_end_token=62,
    video_token=63,
)


class RoundRates(Rates):
    """Seconds that do not depend on the work, but for the tokens of a chunk."""

    def prefill(self, rows, tokens):
        return 3.0 * self.sampling

    def extend(self, lanes, tokens, before):
        return 2.0 * self.sampling

    def decode(self, rows, width, steps, prompt, suffix):
        return 0.125 * steps * self.sampling

    def vision(self, pictures, slots):
        return 1.0 * self.sampling

    def gradient(self, *shape, reference):
        return 10.0 * self.training

    def update(self):
        return 0.5 * self.training

    def hand_over(self):
        return 0.25

    def checkpoint(self):
        return 7.0


@pytest.fixture
def pod():
    """One host with two rows of two lanes."""
    config = ConfigDict(
        {
            'seed': 0,
            'agent': {'max_turns': 4, 'turn_tokens': 64, 'max_malformed': 0, 'image_results': 2},
            'tools': {'deadline_s': 20.0},
            'rl': {
                'questions_per_step': 4, 'members': 2, 'micro_batch': 2, 'minibatches': 1, 'epochs': 1,
                'pack_step': 0, 'kl_coefficient': 0.0, 'checkpoint_every': 10,
            },
            'rollout': {
                'groups': 2, 'prompt_capacity': 128, 'suffix_capacity': 256, 'chunk': 4,
                'extend_lanes': 2, 'extend_tokens': 64, 'cache_dtype': 'policy', 'tower_batch': 1,
                'tool_threads': 8, 'judge_threads': 8,
            },
        }
    )  # fmt: skip
    rates = RoundRates(SIZES, CHIPS['v5p'], AT_BEST, 4, 4, 4, 'float32')
    cut = Preprocessor(28 * 28, 28 * 28 * 40)
    return Pod(config, cut, rates, hosts=1)


@pytest.fixture
def by_hand():
    """A question of two members: one calls a tool of 4 s and answers, the other answers at once."""
    calls = PlannedTurn(5, 4.0, 3), PlannedTurn(3)
    members = Plan(calls, 'a', 2.0), Plan((PlannedTurn(4),), 'b', 1.0)
    return PlannedGroup(20, (ImageRef('picture', 84, 84),), members)
