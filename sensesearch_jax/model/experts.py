"""Mixture of experts: each token goes through a few of many feed-forward layers, by ragged products.

The experts are sharded over the mesh's expert axis, whose devices have rows of their own elsewhere:
here each sees the tokens of all of them, and adds what its experts say.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sensesearch_jax.model.parameters import Linear, parameter
from sensesearch_jax.model.sizes import LanguageSizes
from sensesearch_jax.runtime.mesh import current, mesh_axes, spec


class Experts(nnx.Module):
    """SwiGLU experts; a token's are weighted by the softmax over all, normalized over those used.

    Args:
        sizes: of the decoder.
        rngs: random numbers of the initializers.
        hf: name of the Hugging Face module.
    """

    def __init__(self, sizes: LanguageSizes, rngs: nnx.Rngs, hf: str):
        n, e, d, f = sizes.layers, sizes.experts, sizes.width, sizes.mlp_width
        self.router = Linear(rngs, d, e, ('embed', 'router'), f'{hf}.gate', layers=n)
        self.gate_up = parameter(
            rngs,
            (n, e, d, 2, f),
            ('layers', 'experts', 'embed', 'pair', 'mlp'),
            f'{hf}.experts.gate_up_proj',
            scale=1 / math.sqrt(d),
            layout='paired',
        )
        self.down = parameter(
            rngs,
            (n, e, f, d),
            ('layers', 'experts', 'mlp', 'embed'),
            f'{hf}.experts.down_proj',
            scale=1 / math.sqrt(f),
        )
        self.used = sizes.experts_used

    def __call__(self, x: Float[Array, 'b g s d']) -> Float[Array, 'b g s d']:
        """Weighted sum of the outputs of each token's experts."""
        scores = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(scores, self.used)
        weights = (weights / weights.sum(-1, keepdims=True)).astype(x.dtype)
        matrices = tuple(m[...].astype(x.dtype) for m in (self.gate_up, self.down))
        mesh = current()
        if mesh is None:
            return mixture(x, weights, chosen, *matrices)
        tokens = spec(('rows', 'members', 'sequence', None), x.shape, mesh)
        # Not along the width: each device needs its experts whole.
        gate_up = spec(('experts', None, None, 'mlp'), matrices[0].shape, mesh)
        down = spec(('experts', 'mlp', None), matrices[1].shape, mesh)
        by_expert = down[0] if mesh.shape['expert'] > 1 else None
        gathered = by_expert if by_expert in mesh_axes(tokens[0]) else None

        def local(x, weights, chosen, gate_up, down):
            if gathered:
                x, weights, chosen = (
                    jax.lax.all_gather(z, gathered, axis=0, tiled=True)
                    for z in (x, weights, chosen)
                )
            first = jax.lax.axis_index(by_expert) * len(down) if by_expert else 0
            y = mixture(x, weights, chosen - first, gate_up, down)
            if over := tuple(a for a in (by_expert, down_axis) if a and a != gathered):
                y = jax.lax.psum(y, over)
            return jax.lax.psum_scatter(y, gathered, tiled=True) if gathered else y

        down_axis = down[1]
        return jax.shard_map(
            local,
            in_specs=(tokens, tokens, tokens, gate_up, down),
            out_specs=tokens,
            check_vma=False,
        )(x, weights, chosen, *matrices)


def mixture(
    x: Float[Array, '*n d'],
    weights: Float[Array, '*n k'],
    chosen: Int[Array, '*n k'],
    gate_up: Float[Array, 'e d 2 f'],
    down: Float[Array, 'e f d'],
) -> Float[Array, '*n d']:
    """Sum of the experts' outputs, of those experts that are here.

    Args:
        x: tokens.
        weights: of the K experts of each token.
        chosen: their indices; those outside 0 … E - 1 are elsewhere.
        gate_up: gate and up matrices of the E experts.
        down: down matrices.
    """
    e, d, k = len(down), x.shape[-1], chosen.shape[-1]
    expert = jnp.where((chosen >= 0) & (chosen < e), chosen, e).reshape(-1)
    order = jnp.argsort(expert)  # by expert, those elsewhere last
    counts = jnp.bincount(expert, length=e).astype(jnp.int32)
    here = (jnp.arange(len(order)) < counts.sum())[:, None]

    def through(rows, matrices):
        # Past the last group a product may hold anything.
        return jnp.where(here, jax.lax.ragged_dot(rows, matrices, counts), 0)

    rows = x.reshape(-1, d)[order // k]
    gate, up = jnp.split(through(rows, gate_up.reshape(e, d, -1)), 2, axis=-1)
    out = through(jax.nn.silu(gate) * up, down)[jnp.argsort(order)].reshape(*chosen.shape, d)
    return (out * weights[..., None]).sum(-2)
