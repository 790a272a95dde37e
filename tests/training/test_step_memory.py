"""Memory of a training step on the device beside its parameters and its gradient."""

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_policies import small_policy

from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trainer import Learner

rl_config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'common.py'))['rl']


def test_a_gradient_holds_no_copy_of_the_parameters():
    """In bfloat16 each layer's parameters are converted where they are used, and prompt and
    suffixes have one gradient."""
    sizes = small_policy().sizes
    sizes = dataclasses.replace(
        sizes,
        vision=dataclasses.replace(sizes.vision, out_width=256),
        language=dataclasses.replace(
            sizes.language,
            layers=48,
            width=256,
            mlp_width=1024,
            heads=4,
            kv_heads=2,
            mrope_sections=(8, 12, 12),
        ),
    )
    learner = Learner(
        abstract_policy(sizes),
        make_optimizer(ConfigDict(rl_config()), 10),
        remat='full',
        dtype=jax.numpy.bfloat16,
    )
    batch = batch_of(ROWS)
    batch = batch._replace(features=np.zeros((*batch.features.shape[:2], 256), np.float32))
    found = learner.lower(batch)['gradient'].compile().memory_analysis()
    count = sum(x.size for x in jax.tree.leaves(learner.parameters))
    assert found.output_size_in_bytes > 1.9 * count
    # a copy would take 2 more for each, a second gradient as well
    assert found.temp_size_in_bytes < 1.9 * count
