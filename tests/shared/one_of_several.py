"""One process of a program of several: a training step on its share of the rows, as a process of a
pod makes it.

    python one_of_several.py ADDRESS PROCESSES INDEX FOLDER

The mesh has four devices however many processes share them. Writes what it found to
FOLDER/INDEX.json, and all processes together the policy, a checkpoint, and the policy's local copy.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

DEVICES = 4


def step(folder, processes=1, index=0):
    """Two SFT steps and an RL step on eight rows in all; what comes out is the same for any number
    of processes."""
    from small_batches import ROWS, batch_of
    from small_policies import SUPPRESSED, VOCABULARY, small_policy

    from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
    from sensesearch_jax.recipes.resume import resume, training_state
    from sensesearch_jax.runtime.mesh import local, make_mesh
    from sensesearch_jax.runtime.multihost import pad_alike
    from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
    from sensesearch_jax.training.checkpointing import Checkpoints, Kept
    from sensesearch_jax.training.optimizer import make_optimizer
    from sensesearch_jax.training.trainer import Learner

    # A row of a batch lies on one process.
    mesh = make_mesh({'fsdp': max(2, processes), 'tensor': -1}, jax.devices()[:DEVICES])
    save_policy(small_policy(), folder / 'start')
    policy = load_policy(folder / 'start', mesh=mesh)
    settings = ConfigDict(
        dict(
            schedule='constant',
            learning_rate=1e-3,
            warmup=0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            clip_norm=1.0,
        )
    )
    learner = Learner(
        policy,
        make_optimizer(settings, 1),
        suppressed=np.isin(np.arange(VOCABULARY), SUPPRESSED),
        mesh=mesh,
        objective=Objective(),
    )
    share = slice(index * 4 // processes, (index + 1) * 4 // processes)
    # Each process knows its own rows only, and so the lengths of its own rows only.
    batch = pad_alike(batch_of(ROWS[share], prompt_step=8, suffix_step=8, feature_step=8))
    losses = [learner.sft_step([batch])['loss'] for _ in range(2)]
    random = np.random.default_rng(0)
    advantages = random.normal(size=(4, 3)).astype(np.float32)[share]
    values = learner.rl_step(
        [(batch, PolicyTargets(advantages, batch.valid[:, :, 1:].any(-1), None))]
    )
    with Checkpoints(folder / 'checkpoints', Kept(last=1, every=0, best=0)) as checkpoints:
        checkpoints.save(1, training_state(learner))
        before = local(learner.parameters)
        learner.parameters = jax.tree.map(lambda x: x * 0, learner.parameters)
        resume(learner, checkpoints)
    save_policy(learner.policy, folder / 'policy')
    after = local(learner.parameters)
    assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(after))
    saved = nnx.state(load_policy(folder / 'policy'), nnx.Param)['language']
    for one, two, three in zip(*map(jax.tree.leaves, (before, after, saved)), strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
    return {
        'losses': losses,
        'rl': values['loss'],
        'norm': values['grad_norm'],
        'lengths': batch.tokens.shape[1:],
    }


if __name__ == '__main__':
    address, count, number, folder = sys.argv[1:]
    jax.config.update('jax_num_cpu_devices', DEVICES // int(count))
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(address, int(count), int(number))
    found = step(Path(folder), int(count), int(number))
    (Path(folder) / f'{number}.json').write_text(json.dumps(found))
