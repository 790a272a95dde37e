"""Policies with random weights, their optimizer, and the operations of their passes, counted by hand."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sensesearch_jax.model.config import PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.training.flops import forward_flops
from sensesearch_jax.training.optimizer import make_optimizer


class Lengths(NamedTuple):
    """Tokens of a row: its prompt, the visual ones among them, and each trajectory after it."""

    prompt: int
    visual: int
    suffix: int


def group_flops(sizes: PolicySizes, members: int, lengths: Lengths) -> float:
    """FLOPs of the decoder's forward pass over one group of so many equal members."""
    return forward_flops(sizes.language, [lengths.prompt], [[lengths.suffix] * members])


def tower_flops(vision: VisionSizes, patches: int) -> float:
    """FLOPs of the tower on one picture of so many patches, which come in full windows."""
    matrices = vision.depth * vision.width * (4 * vision.width + 3 * vision.mlp_width)
    window = (vision.window_tokens * vision.merge_size) ** 2
    full = len(vision.full_attention_blocks)
    seen = full * patches + (vision.depth - full) * window
    merged = vision.width * vision.merge_size**2
    return patches * (
        2 * matrices + 4 * vision.width * seen + 2 * vision.patch_width * vision.width
    ) + (patches / vision.merge_size**2) * 2 * merged * (merged + vision.out_width)


def random_policy(sizes: PolicySizes, dtype: DTypeLike = jnp.bfloat16) -> Policy:
    """Weights that keep activations at about one, made on the device in their own type."""
    policy = abstract_policy(sizes)
    state = nnx.state(policy, nnx.Param)
    draw = jax.jit(
        lambda key, shape, scale: (scale * jax.random.normal(key, shape, dtype)).astype(dtype),
        static_argnums=1,
    )
    for i, (path, parameter) in enumerate(nnx.to_flat_state(state)):
        if path[-1] == 'kernel':
            value = draw(jax.random.key(i), parameter.shape, parameter.shape[-2] ** -0.5)
        elif path[-1] in ('embedding', 'untied_head'):
            value = draw(jax.random.key(i), parameter.shape, 0.02)
        else:
            value = (jnp.ones if path[-1] == 'scale' else jnp.zeros)(parameter.shape, dtype)
        parameter.set_value(value)
    nnx.update(policy, state)
    return policy


def optimizer() -> optax.GradientTransformation:
    """That of the runs, with an update too small to matter."""
    settings = {'schedule': 'constant', 'learning_rate': 1e-6, 'warmup': 1, 'clip_norm': 1.0}
    settings |= {'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'weight_decay': 0.01}
    return make_optimizer(ConfigDict(settings), 10)
