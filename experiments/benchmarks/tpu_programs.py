"""The true programs of a 7B config, from shapes alone, with the work that each cannot do without."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.benchmarks.work import Lengths, group_flops
from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.vision_windows import window_slots
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rows import FEATURE_STEP, PROMPT_STEP, SUFFIX_STEP
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.towers import tower_program
from sensesearch_jax.runtime.mesh import make_mesh, replica_axes, shardings
from sensesearch_jax.training.batch_losses import PolicyTargets
from sensesearch_jax.training.flops import decoder_matrices, step_flops, tower_flops
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.token_log_probs import CHUNK
from sensesearch_jax.training.trained_part import to_train, trained_part
from sensesearch_jax.training.trainer import Learner


class Program(NamedTuple):
    """One program and the least that a device must do for it."""

    name: str
    lowered: jax.stages.Lowered
    flops: float  # of the mathematics, recomputation aside
    weights: float  # bytes of weights and caches that it reads beside its arguments and results
    beside: float  # bytes that stay on the device while it runs and are none of its arguments
    steps: int = 0  # how often a loop runs whose end the data decide, at most


def shape(*n: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(n, dtype)


def training(*case: Any) -> tuple[str, list[Program]]:
    """A micro-batch's gradient and the update of an SFT or RL step, and in words what they work on."""
    config, stage, sizes, lengths, devices = case
    settings, learner = config[stage], learner_of(*case)
    mesh, rows, members = learner.mesh, settings.micro_batch, settings.get('members', 1)
    lengths = Lengths(
        bucket(lengths.prompt - 1, PROMPT_STEP, FINE),
        bucket(lengths.visual, FEATURE_STEP * members),
        bucket(lengths.suffix + 1, SUFFIX_STEP, FINE),
    )
    batch, targets, reference = group_batch(sizes, rows, members, lengths), None, None
    if settings.get('kl_coefficient'):
        reference = shape(rows, members, lengths.suffix - 1, dtype=np.float32)
    if stage == 'rl':
        numbers = (shape(rows, members, dtype=dtype) for dtype in (np.float32, bool))
        targets = PolicyTargets(*numbers, reference)
    run = places = members * lengths.suffix
    if settings.get('pack_step'):
        run = bucket(places, settings.pack_step, FINE)
        batch = batch._replace(packing=Packing(shape(rows, run), shape(rows, places)))
    programs = learner.lower(batch, targets)
    held, kept, moments = map(per_device, (learner.parameters, learner.kept, learner.moments))
    of_reference = held * (reference is not None) + of_tower(learner)
    full = settings.batch if stage == 'sft' else settings.questions_per_step // settings.minibatches
    beside = moments + held * (full > rows) + of_reference  # moments, a sum of gradients
    whole = held * jnp.dtype(settings.dtype).itemsize / 4 + kept
    whole *= mesh.shape['fsdp'] * mesh.shape['sequence']
    passes = 2 + (settings.remat != 'none')  # forward, again, backward
    tokens = [lengths.prompt], [[lengths.suffix] * members]
    flops = rows * step_flops(sizes.language, *tokens, adapters=learner.adapted) / mesh.size
    pieces = math.ceil(rows * run / (mesh.size // mesh.shape['tensor']) / CHUNK)
    words = (
        f'{rows} rows of {lengths.prompt} + {members} × {lengths.suffix} tokens, remat {settings.remat!r}, mesh '
        + ' × '.join(f'{axis} {n}' for axis, n in mesh.shape.items())
        + (f', adapters of rank {settings.lora.rank}' if learner.adapted else '')
    )
    return words, [
        Program(f'{stage} gradient', programs['gradient'], flops, passes * whole, beside, pieces),
        Program(f'{stage} update', programs['update'], 0.0, 0.0, of_reference + kept),
    ]


def sampling(*case: Any) -> tuple[str, list[Program]]:
    """Prefill, extend, decode and vision tower of one replica of the sampler, on devices of its own."""
    config, stage, sizes, lengths, devices = case
    trained = learner_of(*case)
    axes, room = replica_axes(make_mesh(config.mesh, devices)), config.rollout
    count, dtype = math.prod(axes.values()), jnp.dtype(config[stage].dtype)
    policy = placed(sizes, dtype, make_mesh(axes, devices[:count]))
    names = 'groups prompt_capacity suffix_capacity chunk extend_lanes extend_tokens cache_dtype'
    engine = Engine(
        policy,
        members=config[stage].members,
        stop=sizes.end_tokens,
        suppressed=(sizes.image_token,),
        sampling=Sampling(config[stage].temperature),
        **{name: room[name] for name in names.split()},
    )
    used = room.suffix_capacity + room.chunk  # the longest that a lane can be
    programs = engine.lower(bucket(lengths.visual, 512), used)
    text, lanes = sizes.language, engine.groups * engine.members
    weights, caches = per_device(nnx.state(policy.language)), per_device(engine.caches)
    prompt = group_flops(sizes, 0, Lengths(room.prompt_capacity, 0, 0))
    each = 4 * text.layers * text.heads * text.head_width * (room.prompt_capacity + used)
    each, head = each + 2 * decoder_matrices(text), 2 * text.vocabulary * text.width
    words = (
        f'replica of {count} devices, {engine.groups} groups × {engine.members} lanes, caches of '
        f'{room.prompt_capacity} + {used} tokens' + ', beside adapters' * trained.adapted
    )
    first, chunk = engine.prefill_rows * prompt / count, room.chunk * lanes * (each + head) / count
    read, run = room.chunk * (weights + caches), engine.extend_lanes * engine.extend_tokens
    # Adapters are for one machine, which holds what training needs beside the sampler.
    state = trained.parameters, trained.kept, trained.moments
    held = (per_device(state) + of_tower(trained)) * trained.adapted
    return words, [
        Program('prefill', programs['prefill'], first, weights, held),
        Program('extend', programs['extend'], run * each / count, weights + caches, held),
        Program('decode', programs['decode'], chunk, read, held, steps=room.chunk),
        tower(config, sizes, dtype, devices[:count], weights + caches + held),
    ]


def learner_of(config: Any, stage: str, sizes: PolicySizes, _: Lengths, devices: Any) -> Learner:
    """The config's learner, of mere shapes."""
    settings = config[stage]
    return Learner(
        to_train(abstract_policy(sizes), settings, 0),
        make_optimizer(settings, 1),
        objective=make_objective(settings) if stage == 'rl' else None,
        suppressed=np.zeros(sizes.language.vocabulary, bool),
        remat=settings.remat,
        mesh=make_mesh(config.mesh, devices),
        dtype=settings.dtype,
        trained=trained_part(settings),
    )


def of_tower(learner: Learner) -> float:
    """Bytes of the vision tower on a device where adapters are trained, else 0."""
    vision = placed(learner.sizes, learner.dtype, learner.mesh).vision
    return per_device(nnx.state(vision)) * learner.adapted


def tower(config: Any, sizes: PolicySizes, dtype: Any, devices: Any, beside: float) -> Program:
    """The vision tower on a full batch of 4K pictures, as the feature store runs it."""
    vision, mesh, n = sizes.vision, make_mesh({'fsdp': -1}, devices), config.rollout.tower_batch
    encode, parameters, _ = tower_program(placed(sizes, dtype, mesh))
    pixels = config.min_pixels, config.max_pixels
    _, *grid = Preprocessor(*pixels, vision.patch_size, vision.merge_size).grid(3840, 2160)
    slots = window_slots(*(side // vision.merge_size for side in grid), vision.window_tokens)
    slots, patches = bucket(slots, vision.window_tokens**2), math.prod(grid)
    at = n, slots * vision.merge_size**2
    images = shape(*at, vision.patch_width, dtype=np.float32), shape(*at, 2), shape(*at, dtype=bool)
    with jax.set_mesh(mesh):
        lowered = encode.lower(parameters, (*images, shape(n, slots)))
    flops = n * tower_flops(vision, patches) / mesh.size
    weights = per_device(parameters) * mesh.size
    return Program(f'tower, {n} pictures of {patches} patches', lowered, flops, weights, beside)


def placed(sizes: PolicySizes, dtype: Any, mesh: Mesh) -> Policy:
    """A policy of mere shapes with their places."""
    graph, state = nnx.split(abstract_policy(sizes))

    def one(x, place):
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=place)

    return nnx.merge(graph, jax.tree.map(one, state, shardings(state, mesh)))


def group_batch(sizes: PolicySizes, rows: int, members: int, lengths: Lengths) -> GroupBatch:
    """The shapes of a micro-batch."""
    prompt, suffix = (rows, lengths.prompt), (rows, members, lengths.suffix)
    return GroupBatch(
        prompt=shape(*prompt),
        prompt_positions=shape(3, *prompt),
        prompt_valid=shape(*prompt, dtype=bool),
        prompt_features=shape(*prompt),
        tokens=shape(*suffix),
        positions=shape(3, *suffix),
        valid=shape(*suffix, dtype=bool),
        feature_index=shape(*suffix),
        response_mask=shape(*suffix, dtype=bool),
        log_probs=shape(*suffix, dtype=np.float32),
        features=shape(rows, lengths.visual, sizes.vision.feature_width, dtype=np.float32),
    )


def per_device(tree: Any) -> float:
    """Bytes of a tree's arrays on one device."""
    leaves = jax.tree.leaves(tree)
    shards = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    return float(sum(shards))
