"""A policy of any size with random weights, made on the device: for what a checkpoint's numbers do
not matter to.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.qwen2_5_vl import Policy


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
