"""Parameters that weight decay pulls on, by name, and updates that are not finite."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_policies import small_policy

from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.pocket.pretraining.policy_with_probes import PolicyWithProbes
from sensesearch_jax.training.optimizer import decays, finite_update, make_optimizer

rl_config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'common.py'))['rl']
CONFIG = ConfigDict(rl_config() | {'learning_rate': 0.5, 'warmup': 0, 'weight_decay': 0.1})
MATRICES = {
    'language.embedding', 'language.layers.query.kernel', 'language.layers.key.kernel', 'language.layers.value.kernel',
    'language.layers.out.kernel', 'language.layers.mlp.gate.kernel', 'language.layers.mlp.up.kernel',
    'language.layers.mlp.down.kernel',
    'vision.patch_embedding.kernel', 'vision.blocks.qkv.kernel', 'vision.blocks.out.kernel', 'vision.blocks.mlp.gate.kernel',  # noqa: E501
    'vision.blocks.mlp.up.kernel', 'vision.blocks.mlp.down.kernel', 'vision.merger.mlp.hidden.kernel', 'vision.merger.mlp.out.kernel',  # noqa: E501
}  # fmt: skip


def named(state):
    return {'.'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize('tied', [True, False])
def test_matrices_decay_and_nothing_else(tied):
    """Of all parameters; biases and norms have two axes where they are stacked over layers, as an
    untied head has."""
    sizes = small_policy().sizes
    sizes = dataclasses.replace(sizes, language=dataclasses.replace(sizes.language, tied_head=tied))
    policy = abstract_policy(sizes)
    decaying = {
        name
        for name, mask in named(decays(nnx.state(policy, nnx.Param))).items()
        if jax.tree.leaves(mask) == [True]
    }
    assert decaying == MATRICES | (set() if tied else {'language.untied_head'})
    # The base policy's training has the same rule, for its probes as well.
    trained = nnx.eval_shape(lambda: PolicyWithProbes(policy, (1,), 0))
    found = {
        name
        for name, mask in named(decays(nnx.state(trained, nnx.Param))).items()
        if jax.tree.leaves(mask) == [True]
    }
    assert found == {f'policy.{name}' for name in decaying} | {'probes.0.read.kernel'}


def test_the_optimiser_decays_by_that_rule():
    parameters = nnx.state(small_policy(), nnx.Param)
    optimizer = make_optimizer(CONFIG, 1)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(parameters), parameters)
    moving = {name for name, update in named(updates).items() if np.any(update[...])}
    assert moving == MATRICES | {'language.untied_head'}


def test_a_parameter_of_unknown_kind_is_no_guess():
    with pytest.raises(ValueError, match="'gate.weight' is neither a matrix nor spared"):
        decays({'gate': {'weight': np.zeros(3)}})


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_not_made(bad):
    optimizer = make_optimizer(CONFIG, 1)
    parameters = {'kernel': jnp.array([[3.0, -4.0]]), 'bias': jnp.array([0.0])}
    update = jax.jit(lambda *operands: finite_update(optimizer, *operands))
    good = {'kernel': jnp.array([[0.3, 0.4]]), 'bias': jnp.array([1.2])}
    start = parameters
    parameters, moments, values = update(start, optimizer.init(start), good)
    moved = np.sqrt(sum(np.sum((parameters[name] - start[name]) ** 2) for name in start))
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {'grad_norm': 1.3, 'param_norm': 5.0, 'learning_rate': 0.5, 'update_norm': moved}
    )
    after, kept, values = update(parameters, moments, good | {'bias': jnp.array([bad])})
    assert not np.isfinite(values['grad_norm']) and values['update_norm'] == 0
    for one, other in zip(
        jax.tree.leaves((after, kept)), jax.tree.leaves((parameters, moments)), strict=True
    ):
        assert np.array_equal(one, other)
