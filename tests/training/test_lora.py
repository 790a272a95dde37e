"""Adapters, sharded: their forward pass and gradients beside those of the merged matrices, and all else
frozen."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_learners import MASK, rl_config, values_of
from small_policies import small_policy

from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.lora import TARGETS, Lora, add_adapters, is_adapter, merge_adapters
from sensesearch_jax.recipes.resume import resume, training_state
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.training.checkpointing import Checkpoints, Kept
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.placement import placed
from sensesearch_jax.training.trained_part import inner_decoder
from sensesearch_jax.training.trainer import Learner

LORA = Lora(rank=4, alpha=6.0, targets=TARGETS)
SCALE = 6.0 / 4
TOKENS = 10.0  # that the loss's sum is divided by
# a family whose queries and keys have norms, and whose first layers are given pictures' features
PLAIN = small_policy(family='qwen3_vl')


@functools.cache
def adapted():
    """A policy with adapters that add about as much as the matrices themselves."""
    policy, random = add_adapters(PLAIN, LORA, seed=3), np.random.default_rng(0)
    state = nnx.state(policy, is_adapter)
    for path, parameter in nnx.to_flat_state(state):
        if path[-1] == 'lora_b':
            parameter.set_value(jnp.asarray(0.2 * random.normal(size=parameter.shape), jnp.float32))
    nnx.update(policy, state)
    return policy


@functools.cache
def learner_of():
    """A learner of the adapters at its start, on four devices."""
    optimizer = make_optimizer(ConfigDict(rl_config() | {'learning_rate': 1e-2, 'warmup': 0}), 10)
    mesh = make_mesh({'fsdp': 2, 'tensor': 2})
    return Learner(adapted(), optimizer, suppressed=MASK, trained=is_adapter, mesh=mesh)


def anew(learner):
    """A learner with the same programs and arrays of its own, since updates donate them."""
    learner = copy.copy(learner)
    state = learner.parameters, learner.moments
    learner.parameters, learner.moments = jax.tree.map(jnp.copy, state)
    return learner


@functools.cache
def batch():
    """All rows, with features as wide as this family's."""
    made = batch_of(ROWS)
    return made._replace(
        features=np.tile(made.features, 1 + len(PLAIN.sizes.vision.deepstack_blocks))
    )


def by_hand(policy):
    """The plain policy, its matrices W + alpha / rank A B worked out in float64."""
    values, state = values_of(nnx.state(policy)), nnx.state(PLAIN)
    kernels = {}
    for path, _ in nnx.to_flat_state(state):
        name = '.'.join(path[:-1])
        if f'{name}.adapter.lora_a' in values and path[-1] == 'kernel':
            w, a, b = (
                values[f'{name}.{part}'].astype(np.float64)
                for part in ('kernel', 'adapter.lora_a', 'adapter.lora_b')
            )
            kernels[path] = w + SCALE * a @ b
    assert len(kernels) == len(TARGETS)
    changed = [
        (path, p.replace(jnp.asarray(kernels[path], jnp.float32)) if path in kernels else p)
        for path, p in nnx.to_flat_state(state)
    ]
    return nnx.merge(nnx.split(PLAIN)[0], nnx.from_flat_state(changed))


def gradient(learner):
    """Of the loss by what is trained, and the loss."""
    with jax.set_mesh(learner.mesh):
        weights = learner.parameters, learner.kept
        found, metrics = learner._sft(weights, placed(batch(), learner.mesh), TOKENS)
    return values_of(found), float(metrics['loss'][0])


def test_adapters_are_a_change_of_the_matrices():
    """The loss of the merged policy, which is on one device, and by the chain rule its gradients:
    dA = s dW B', dB = s A' dW."""
    merged = Learner(by_hand(adapted()), optax.sgd(0.1), suppressed=MASK, trained=inner_decoder)
    (ours, loss), (of_matrices, expected) = gradient(learner_of()), gradient(merged)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(ours) == 2 * len(TARGETS)
    values = values_of(nnx.state(adapted()))
    for name, found in ours.items():
        module, part = name.rsplit('.adapter.', 1)
        dw = SCALE * of_matrices[f'{module}.kernel'].astype(np.float64)
        if part == 'lora_a':
            wanted = dw @ values[f'{module}.adapter.lora_b'].swapaxes(1, 2)
        else:
            wanted = values[f'{module}.adapter.lora_a'].swapaxes(1, 2) @ dw
        assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max(), name


def test_what_is_frozen_stays_bit_for_bit_and_the_sampler_gets_merged_matrices():
    """Nothing but adapters has gradients, moments and updates; one that is not finite is left out."""
    learner, before = anew(learner_of()), values_of(nnx.state(adapted()))
    learner.sft_step([batch()])
    after = values_of(nnx.state(learner.unmerged))
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == ('adapter' not in name), name
    trained = sum(leaf.size for leaf in jax.tree.leaves(learner.parameters))
    assert trained == sum(v.size for name, v in before.items() if 'adapter' in name)
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(learner.moments)) <= 2 * trained + 4
    spoiled = batch()._replace(features=np.full_like(batch().features, np.nan))
    assert learner.sft_step([spoiled])['skipped_updates'] == 1
    sampled, expected = learner.all_parameters, nnx.state(by_hand(learner.unmerged))
    assert jax.tree.structure(sampled) == jax.tree.structure(nnx.state(PLAIN))
    for name, value in values_of(expected).items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(values_of(sampled)[name], value, rtol=1e-6, atol=1e-6)


def test_a_resumed_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    """Bit for bit, from a checkpoint of adapters and their moments."""
    whole, torn, again = (anew(learner_of()) for _ in range(3))
    for _ in range(2):
        whole.sft_step([batch()])
    torn.sft_step([batch()])
    with Checkpoints(tmp_path, Kept(last=1, every=0, best=0)) as checkpoints:
        checkpoints.save(1, training_state(torn))
        assert resume(again, checkpoints) == 1
    again.sft_step([batch()])
    expected = jax.tree.leaves(training_state(whole))
    for one, other in zip(jax.tree.leaves(training_state(again)), expected, strict=True):
        assert np.array_equal(one, other)


def test_a_policy_whose_adapters_add_nothing_is_the_plain_one():
    fresh = merge_adapters(add_adapters(PLAIN, LORA, seed=0))
    for one, other in zip(jax.tree.leaves(nnx.state(fresh)), jax.tree.leaves(nnx.state(PLAIN))):
        assert np.array_equal(one, other)


def test_experts_have_no_adapters_but_their_attention_has():
    sparse = PLAIN.sizes.adapted('qwen3_vl_moe')
    with pytest.raises(ValueError, match=r"targets name .'gate_proj'.*are experts.*choose from"):
        LORA.check(sparse.language)
    attention = LORA._replace(targets=TARGETS[:4])
    attention.check(sparse.language)
    state = nnx.state(add_adapters(abstract_policy(sparse), attention, seed=0), is_adapter)
    assert len(jax.tree.leaves(state)) == 8


def test_a_program_s_results_are_as_large_as_the_adapters():
    """In the forward pass's type; frozen matrices have it too, and no gradient, moments or master copy."""
    learner = Learner(
        add_adapters(abstract_policy(PLAIN.sizes), LORA, seed=0),
        optax.adam(0.1),
        trained=is_adapter,
        dtype=jnp.bfloat16,
    )
    adapters = sum(leaf.size for leaf in jax.tree.leaves(learner.parameters))
    gradients, _ = jax.tree.leaves(learner.lower(batch())['gradient'].out_info), None
    assert sum(x.size for x in gradients if x.ndim) == adapters
    assert {x.dtype for x in gradients if x.ndim} == {jnp.dtype('bfloat16')}
    assert sum(leaf.size for leaf in jax.tree.leaves(learner.moments)) <= 2 * adapters + 1
