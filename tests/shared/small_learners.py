"""Learners of a small policy that share their programs, batches of it, and how far parameters move."""

import copy
import functools
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from small_batches import batch_of
from small_policies import SUPPRESSED, VOCABULARY, small_policy

from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rl_update import ALGORITHMS
from sensesearch_jax.training.advantages import batch_normalize, group_advantages
from sensesearch_jax.training.batch_losses import PolicyTargets
from sensesearch_jax.training.placement import placed
from sensesearch_jax.training.trained_part import decoder
from sensesearch_jax.training.trainer import Learner

rl_config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'common.py'))['rl']
POLICY = small_policy()
MASK = np.isin(np.arange(VOCABULARY), SUPPRESSED)
# so that some ratios are clipped
CLOSE = {'kl_coefficient': 0.1, 'clip_low': 0.1, 'clip_high': 0.1}


OBJECTIVES = {
    ALGORITHMS[name].ratio: make_objective(ConfigDict(rl_config() | CLOSE | {'algorithm': name}))
    for name in ('gspo', 'grpo')
}


@functools.cache
def compiled(**options):
    return Learner(POLICY, optax.sgd(0.1), suppressed=MASK, **options)


def learner_of(**options):
    """A learner at its start; those with the same options share their programs, but not what they
    learn."""
    learner = copy.copy(compiled(**options))
    learner.parameters = jax.tree.map(jax.numpy.copy, nnx.state(POLICY, decoder))
    learner.moments = learner.optimizer.init(learner.parameters)
    return learner


def values_of(state):
    return {'.'.join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def moved(learner):
    """How far each trained parameter went from where it started."""
    start = values_of(nnx.state(POLICY, decoder))
    return {name: value - start[name] for name, value in values_of(learner.parameters).items()}


def assert_same_moves(one, other, tolerance=1e-5):
    for name, step in one.items():
        # The floor: terms of a key's bias nearly cancel, and what is left of a few of them is
        # rounding.
        allowed = max(tolerance * np.abs(step).max(), 2e-7)
        assert np.abs(step - other[name]).max() <= allowed, name


def targets_for(learner, rows, algorithm, in_loss=None, seed=3):
    """Advantages as the algorithm makes them; old log-probs near the policy's, so that some ratios
    clip."""
    random = np.random.default_rng(seed)
    batch = batch_of(rows)
    own, near = batch.response_mask[:, :, 1:], np.asarray(learner.log_probs(batch))
    shift = random.normal(0, 0.3, near.shape) + random.normal(0, 0.2, (*near.shape[:2], 1))
    old = np.where(own, near + shift, 0).astype(np.float32)
    batch.log_probs[:, :, 1:] = old
    usable = batch.valid[:, :, 1:].any(-1) if in_loss is None else in_loss
    rewards, ids = (
        random.normal(size=usable.shape).astype(np.float32),
        np.repeat(np.arange(len(rows)), 3),
    )
    advantages = group_advantages(rewards.ravel(), ids, usable.ravel())
    if ALGORITHMS[algorithm].batch_layer:
        advantages = batch_normalize(advantages, usable.ravel())
    reference = np.where(own, near + random.normal(0, 0.2, near.shape), 0).astype(np.float32)
    return batch, PolicyTargets(np.asarray(advantages).reshape(usable.shape), usable, reference)


def pick_targets(targets, rows):
    """Those of some rows."""
    return PolicyTargets(*(None if x is None else x[rows] for x in targets))


def pick(batch, rows):
    """Some rows of a batch, as a batch."""
    fields = {name: getattr(batch, name) for name in batch._fields}
    for name, value in fields.items():
        if name == 'packing':
            continue
        if name.endswith('positions'):
            fields[name] = value[:, rows]
        else:
            fields[name] = value[rows]
    return batch._replace(**fields)


def policy_gradient(learner, batch, targets):
    """The gradient of the policy loss of a minibatch that is one micro-batch, and its statistics."""
    in_loss = learner._in_loss([(batch, targets)])
    with jax.set_mesh(learner.mesh):
        weights = learner.parameters, learner.kept
        return learner._rl(weights, *placed((batch, targets), learner.mesh), *map(float, in_loss))
