r"""Low-rank adapters (LoRA, arXiv 2106.09685) beside frozen matrices of the decoder.

.. math:: y = x W + s\, x A B, \qquad s = \alpha / r, \quad A \in R^{i \times r}, \; B \in R^{r \times o}

W stays as it is, bit for bit; A and B are trained, in float32. The same policy without adapters has
the matrices W + s A B: that is what samples, and what a saved policy holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sensesearch_jax.model.parameters import Linear, multiply, parameter
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.sizes import LanguageSizes
from sensesearch_jax.runtime.mesh import is_abstract, mesh_of, shardings

TARGETS = 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'
OF_MLP = TARGETS[4:]
PEFT = 'base_model.model.'  # before the name of a module in PEFT's files


class Lora(NamedTuple):
    """Settings of adapters.

    Args:
        rank: r; 0 for no adapters.
        alpha: the scale s is alpha / rank.
        targets: matrices that have an adapter, names of TARGETS.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, config: ConfigDict) -> Self:
        """The settings in a config's `lora`."""
        return cls(config.rank, config.alpha, tuple(config.targets))

    def check(self, sizes: LanguageSizes) -> None:
        """Whether a decoder of these sizes can have such adapters.

        Raises:
            ValueError: it cannot.
        """
        if self.rank < 0:
            raise ValueError(f'rank is {self.rank}; give 0 (no adapters) or more.')
        if not self.alpha > 0:
            raise ValueError(f'alpha is {self.alpha}; give more than 0.')
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f'targets name {unknown or "nothing"}; choose from {TARGETS}.')
        if not self.rank:
            return
        if sizes.experts and (of_mlp := [name for name in self.targets if name in OF_MLP]):
            raise ValueError(
                f"targets name {of_mlp}, but this policy's feed-forward layers are experts, which have no adapters; "
                f'choose from {TARGETS[:4]}.'
            )


class Adapter(nnx.Module):
    """Low-rank addition s x A B to the output of a linear layer.

    A is random, with the variance that PEFT's has, and B is 0, so that it begins with adding nothing.

    Args:
        rngs: random numbers of A.
        kernel: the layer's W, for its shape, axes and Hugging Face name.
        lora: rank and scale.
    """

    def __init__(self, rngs: nnx.Rngs, kernel: nnx.Param, lora: Lora):
        *lead, i, o = kernel.shape
        *names, of_in, of_out = kernel.axes
        hf = PEFT + kernel.hf.removesuffix('.weight')
        self.lora_a = parameter(
            rngs,
            (*lead, i, lora.rank),
            (*names, of_in, 'rank'),
            f'{hf}.lora_A.weight',
            scale=1 / math.sqrt(3 * i),
            layout='transposed',
        )
        self.lora_b = parameter(
            rngs,
            (*lead, lora.rank, o),
            (*names, 'rank', of_out),
            f'{hf}.lora_B.weight',
            init='zeros',
            layout='transposed',
        )
        self.scale = lora.alpha / lora.rank

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
        """The addition to the output for x."""
        low = multiply(x, self.lora_a[...].astype(x.dtype), self.lora_a.axes[-2:])
        return self.scale * multiply(low, self.lora_b[...].astype(x.dtype), self.lora_b.axes[-2:])


def is_adapter(path: tuple[str, ...], _: Any) -> bool:
    """Filter of the adapters' parameters."""
    return 'adapter' in path


def add_adapters(policy: Policy, lora: Lora, seed: int) -> Policy:
    """The policy with adapters, which add nothing yet; it shares the arrays of `policy`.

    Args:
        policy: without adapters; perhaps of mere shapes.
        lora: the settings; with a rank of 0 the result is `policy` itself.
        seed: of the matrices A.
    """
    if not lora.rank:
        return policy
    adapted = nnx.merge(*nnx.split(policy))
    linears = {linear.kernel.hf.split('.')[-2]: linear for linear in _linears(adapted)}
    state = nnx.state(policy, nnx.Param)

    def make(name: str) -> Adapter:
        key = jax.random.fold_in(jax.random.key(seed), TARGETS.index(name))
        return Adapter(nnx.Rngs(key), linears[name].kernel, lora)

    def made() -> dict[str, nnx.State]:
        return {name: nnx.state(make(name)) for name in lora.targets}

    values = jax.eval_shape(made)
    if not is_abstract(state):
        values = jax.jit(made, out_shardings=shardings(values, mesh_of(state)))()
    for name in lora.targets:
        graph, _ = nnx.split(nnx.eval_shape(functools.partial(make, name)))
        linears[name].adapter = nnx.merge(graph, values[name])
    return adapted


def merge_adapters(policy: Policy) -> Policy:
    """The same policy without adapters, its matrices W + s A B in the type of W.

    It shares all other arrays with `policy`, and is `policy` itself where that has no adapters.
    """
    if not has_adapters(policy):
        return policy
    plain = nnx.merge(*nnx.split(policy))
    for linear in _linears(plain):
        if (adapter := linear.adapter) is not None:
            w, a, b = (p[...] for p in (linear.kernel, adapter.lora_a, adapter.lora_b))
            # A new parameter: the old one is that of `policy` too.
            linear.kernel = linear.kernel.replace(_merged(w, a, b, adapter.scale, w.sharding))
            linear.adapter = None
    return plain


def has_adapters(policy: Policy) -> bool:
    """Whether the policy has adapters."""
    return any(linear.adapter is not None for linear in _linears(policy))


def _linears(policy: Policy) -> Iterator[Linear]:
    """The linear layers of the decoder."""
    modules = [module for _, module in nnx.iter_modules(policy.language.layers)]
    return (module for module in modules if isinstance(module, Linear))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _merged(w: Array, a: Array, b: Array, scale: float, place: Sharding) -> Array:
    """W + s A B of each layer, one after another: the sum is in float32, of one layer at a time."""

    def layer(wab):
        w, a, b = wab
        added = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + added).astype(w.dtype)

    return jax.lax.with_sharding_constraint(jax.lax.map(layer, (w, a, b)), place)
