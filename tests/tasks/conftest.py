"""A tiny policy with random weights, in a Hugging Face directory like any other."""

import runpy
from pathlib import Path

import pytest

from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.inputs.train_tokenizer import train_tokenizer
from sensesearch_jax.tasks import base

CONFIGS = Path(__file__).parents[2] / 'configs'


def quick_tokenizer(folder, pages, vocabulary):
    """In the place of the pocket tokenizer, whose training reads the whole corpus."""
    turn = (
        '<think>The flag is small here. I crop it to see more.</think>\n<tool_call>\n{"name": "image_crop", '
        '"arguments": {"bbox": [0.1, 0.3, 0.4, 0.6]}}\n</tool_call><tool_response>\n1. Title: What is the '
        'capital of the country whose flag is farthest left?\n</tool_response>\n<answer></answer>'
    )
    train_tokenizer([DEFAULT.system_prompt(), turn] * 20, folder, vocabulary)


@pytest.fixture(scope='session')
def policy_folder(tmp_path_factory):
    """One layer of width 32; pictures become at most 12 visual tokens."""
    config, folder = (
        runpy.run_path(str(CONFIGS / 'base.py'))['get_config'](),
        tmp_path_factory.mktemp('policy'),
    )
    config.language.update(
        layers=1, width=32, mlp_width=32, heads=2, kv_heads=1, vocabulary=640, mrope_sections=(2, 2, 4)
    )
    config.vision.update(depth=1, width=16, mlp_width=16, heads=1, full_attention_blocks=(0,))
    config.max_pixels = 28 * 28 * 12
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(base, 'write_tokenizer', quick_tokenizer)
        base.write_untrained(folder, config, pages=None)
    return folder
