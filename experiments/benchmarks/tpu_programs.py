"""The true programs of a 7B config, from shapes alone, with the work that each cannot do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.benchmarks.work import Lengths, group_flops
from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rows import FEATURE_STEP, PROMPT_STEP, SUFFIX_STEP
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.mesh import make_mesh, shardings
from sensesearch_jax.training.batch_losses import PolicyTargets
from sensesearch_jax.training.flops import decoder_matrices
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trainer import Learner


class Program(NamedTuple):
    """One program and the least that a device must do for it."""

    name: str
    lowered: jax.stages.Lowered
    flops: float  # of the mathematics, recomputation aside
    weights: float  # bytes of weights and caches that it reads beside its arguments and results
    beside: float  # bytes that stay on the device while it runs and are none of its arguments
    steps: int = 0  # how often a loop runs whose end the data decide, at most


def training(
    config: ConfigDict,
    stage: str,
    sizes: PolicySizes,
    lengths: Lengths,
    devices: Sequence[jax.Device],
) -> tuple[str, list[Program]]:
    """A micro-batch's gradient and the update of an SFT or RL step, and in words what they work on."""
    settings, mesh = config[stage], make_mesh(config.mesh, devices)
    rows, members = settings.micro_batch, settings.get('members', 1)
    policy = abstract_policy(sizes)
    learner = Learner(
        policy,
        make_optimizer(settings, 1),
        objective=make_objective(settings) if stage == 'rl' else None,
        suppressed=np.zeros(sizes.language.vocabulary, bool),
        remat=settings.remat,
        mesh=mesh,
        dtype=settings.dtype,
    )
    lengths = Lengths(
        bucket(lengths.prompt - 1, PROMPT_STEP, FINE),
        bucket(lengths.visual, FEATURE_STEP * members),
        bucket(lengths.suffix + 1, SUFFIX_STEP, FINE),
    )

    def number(*n, dtype=np.float32):
        return jax.ShapeDtypeStruct(n, dtype)

    reference = (
        number(rows, members, lengths.suffix - 1) if settings.get('kl_coefficient') else None
    )
    targets = (
        None
        if stage == 'sft'
        else PolicyTargets(number(rows, members), number(rows, members, dtype=bool), reference)
    )
    batch = group_batch(sizes, rows, members, lengths)
    if settings.get('pack_step'):
        places = members * lengths.suffix
        run = bucket(places, settings.pack_step, FINE)

        def number_of(n):
            return jax.ShapeDtypeStruct((rows, n), np.int32)

        batch = batch._replace(packing=Packing(number_of(run), number_of(places)))
    programs = learner.lower(batch, targets)
    held, moments = per_device(learner.parameters), per_device(learner.moments)
    whole_batch = (
        settings.batch if stage == 'sft' else settings.questions_per_step // settings.minibatches
    )
    # A sum of gradients, a reference.
    beside = moments + held * (whole_batch > rows) + held * (reference is not None)
    whole = held * mesh.shape['fsdp'] * jnp.dtype(settings.dtype).itemsize / 4
    passes = 2 + (settings.remat != 'none')  # forward, again, backward
    words = (
        f'{rows} rows of {lengths.prompt} + {members} × {lengths.suffix} tokens, remat {settings.remat!r}, mesh '
        + ' × '.join(f'{axis} {n}' for axis, n in mesh.shape.items())
    )
    return words, [
        Program(
            f'{stage} gradient',
            programs['gradient'],
            rows * group_flops(sizes, members, lengths) * 3 / mesh.size,
            passes * whole,
            beside,
        ),
        Program(f'{stage} update', programs['update'], 0.0, 0.0, held * (reference is not None)),
    ]


def sampling(
    config: ConfigDict,
    stage: str,
    sizes: PolicySizes,
    lengths: Lengths,
    devices: Sequence[jax.Device],
) -> tuple[str, list[Program]]:
    """Prefill and decode of one replica of the sampler, on as many devices as the mesh has along
    tensor.
    """
    count = config.mesh.tensor
    mesh = make_mesh({'tensor': count}, devices[:count])
    graph, state = nnx.split(abstract_policy(sizes))
    dtype = jnp.dtype(config[stage].dtype)
    placed = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place),
        state,
        shardings(state, mesh),
    )
    room = config.rollout
    engine = Engine(
        nnx.merge(graph, placed),
        groups=room.groups,
        members=config[stage].members,
        prompt_capacity=room.prompt_capacity,
        suffix_capacity=room.suffix_capacity,
        chunk=room.chunk,
        stop=sizes.end_tokens,
        suppressed=(sizes.image_token,),
        sampling=Sampling(config[stage].temperature),
    )
    used = room.suffix_capacity + room.chunk  # the longest that a lane can be
    programs = engine.lower(bucket(lengths.visual, 512), used)
    text, lanes = sizes.language, engine.groups * engine.members
    weights, caches = per_device(placed['language']), per_device(engine.caches)
    run = Lengths(room.prompt_capacity, 0, 0)
    each = 2 * decoder_matrices(text) + 2 * text.vocabulary * text.width
    attended = 4 * text.layers * text.width * (room.prompt_capacity + used)
    words = (
        f'replica of {count} devices, {engine.groups} groups × {engine.members} lanes, caches of '
        f'{room.prompt_capacity} + {used} tokens'
    )
    return words, [
        Program(
            'prefill',
            programs['prefill'],
            engine.prefill_rows * group_flops(sizes, 0, run) / count,
            weights,
            0.0,
        ),
        Program(
            'decode',
            programs['decode'],
            room.chunk * lanes * (each + attended) / count,
            room.chunk * (weights + caches),
            0.0,
            steps=room.chunk,
        ),
    ]


def group_batch(sizes: PolicySizes, rows: int, members: int, lengths: Lengths) -> GroupBatch:
    """The shapes of a micro-batch."""
    p, s = lengths.prompt, lengths.suffix

    def shape(*n, dtype=np.int32):
        return jax.ShapeDtypeStruct(n, dtype)

    return GroupBatch(
        shape(rows, p),
        shape(3, rows, p),
        shape(rows, p, dtype=bool),
        shape(rows, p),
        shape(rows, members, s),
        shape(3, rows, members, s),
        shape(rows, members, s, dtype=bool),
        shape(rows, members, s),
        shape(rows, members, s, dtype=bool),
        shape(rows, members, s, dtype=np.float32),
        shape(rows, lengths.visual, sizes.language.width, dtype=np.float32),
    )


def per_device(tree: Any) -> float:
    """Bytes of a tree's arrays on one device."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )
