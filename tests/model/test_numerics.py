"""The numerics tool finds the block that is wrong, and no other."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.analysis import numerics, processors
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.policy import Policy

SMALL = PolicySizes(
    VisionSizes(
        depth=4, width=64, mlp_width=96, heads=4, out_width=128, full_attention_blocks=(1, 3)
    ),
    LanguageSizes(
        layers=6,
        width=128,
        mlp_width=192,
        heads=8,
        kv_heads=2,
        vocabulary=512,
        mrope_sections=(2, 3, 3),
    ),
    image_token=500,
    vision_start_token=501,
    vision_end_token=502,
    video_token=503,
    end_tokens=(504,),
)


def random_policy(folder: Path, sizes: PolicySizes) -> None:
    """A policy whose norms and biases matter, as a directory."""
    policy, random = Policy(sizes, nnx.Rngs(0)), np.random.default_rng(0)
    state = nnx.state(policy, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        if path[-1] in ('scale', 'bias'):
            noise = random.standard_normal(parameter.shape, np.float32)
            parameter.set_value(parameter[...] + 0.2 * noise)
    nnx.update(policy, state)
    save_policy(policy, folder)


@pytest.mark.parametrize('family', ['qwen2_5_vl', pytest.param('qwen3_vl', marks=pytest.mark.slow)])
def test_a_wrong_block_is_named(tmp_path, monkeypatch, family):
    """A decoder layer whose weights differ by a hundredth: wrong alone, and everything after it so
    far."""

    def bent(folder, dtype):
        policy = load_policy(folder, dtype)
        kernel = policy.language.layers.mlp.down.kernel
        kernel.set_value(kernel[...].at[3].multiply(jnp.asarray(1.01, dtype)))
        return policy

    random_policy(tmp_path, SMALL.adapted(family))
    monkeypatch.setattr(numerics, 'load_policy', bent)
    rows, wrong = numerics.compare(tmp_path, Image.new('RGB', (120, 90), 'teal'))
    assert [sentence.split(':')[0] for sentence in wrong if 'alone' in sentence] == ['decoder 3']
    assert {s.split(':')[0] for s in wrong if 'so far' in s} == {
        'decoder 3',
        'decoder 4',
        'decoder 5',
        'norm',
        'logits',
    }
    assert (
        list(rows)[:2] == ['patches', 'vision 0']
        and max(row['so far'] for row in rows.values()) < 0.1
    )


def test_patches_are_compared_with_both_processors(monkeypatch):
    """Nothing apart from the one on PIL; the one on torchvision is said to be skipped where it is
    not installed."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    monkeypatch.setattr('transformers.utils.is_torchvision_available', lambda: False)
    found = processors.differences(Preprocessor(), noise)
    assert found == {'PIL': (0.0, 0), 'torchvision': None}
    assert processors.sentences(found) == [
        'patches, processor on PIL: 0.00% of the pixels differ, by at most 0 of 255 levels',
        'patches, processor on torchvision: not compared: torchvision is not installed',
    ]


def test_pixels_that_differ_are_counted_in_levels(monkeypatch):
    whole, patches = Preprocessor(), Preprocessor.patches

    def bent(self, image):
        """Half of the patches with one colour three levels brighter."""
        out, grid = patches(self, image)
        out[::2, : self.patch_width // 3] += np.float32(3 / 255 / self.image_std[0])
        return out, grid

    monkeypatch.setattr(Preprocessor, 'patches', bent)
    assert processors.differences(whole, Image.new('RGB', (280, 280), 'teal'))['PIL'] == (0.5, 3)
