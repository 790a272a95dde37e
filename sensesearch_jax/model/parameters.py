"""Parameters, each declared once with its shape, logical axes, initializer and Hugging Face name."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sensesearch_jax.runtime.mesh import constrain, platform, sequence_shards


def parameter(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    hf: str,
    *,
    init: str = 'normal',
    scale: float = 0.02,
    layout: str = 'same',
    dtype=jnp.float32,
) -> nnx.Param:
    """Parameter with its logical axes, and its name and layout in a Hugging Face checkpoint.

    Args:
        rngs: random numbers of a normal initializer.
        shape: of the parameter, with the layer axis where it has one.
        axes: one logical name per dimension; a leading 'layers' means that `hf` holds '{}' for the
            layer's index.
        hf: name of the Hugging Face tensor.
        init: 'normal', 'ones' or 'zeros'.
        scale: standard deviation of a normal initializer.
        layout: of the Hugging Face tensor: 'same', 'transposed' ([out, in] there, [in,
            out] here), 'flattened' (a convolution over one patch there, [in, out] here) or
            'paired' (the last two dimensions are one there).
        dtype: of the parameter.

    Raises:
        ValueError: `axes` and `shape` differ in length.
    """
    if len(axes) != len(shape):
        raise ValueError(f'{hf}: {len(axes)} axis names for {len(shape)} dimensions.')
    if init == 'normal':
        value = scale * jax.random.normal(rngs.params(), shape, dtype)
    else:
        value = (jnp.ones if init == 'ones' else jnp.zeros)(shape, dtype)
    return nnx.Param(value, axes=axes, hf=hf, layout=layout)


@jax.custom_vjp
def read(parameter: Float[Array, '*n'], perturbation: Float[Array, '*n']) -> Float[Array, '*n']:
    """The parameter in the dtype of `perturbation`, by which it is differentiated.

    As with `flax.nnx.Perturbation`, the gradient by the perturbation is the parameter's, here in
    that dtype; its value is never read. So a parameter is converted where it is used, when a
    converted copy of all parameters would be as large as their gradient.
    """
    return parameter.astype(perturbation.dtype)


read.defvjp(
    lambda parameter, perturbation: (parameter.astype(perturbation.dtype), None),
    lambda _, gradient: (None, gradient),
)


def read_trained(parameters: nnx.State, perturbations: nnx.State) -> nnx.State:
    """The parameters, of which those that have a perturbation are `read` by it; the others are frozen."""
    paths = {path for path, _ in nnx.to_flat_state(perturbations)}
    trained, frozen = nnx.split_state(parameters, lambda path, _: path in paths, ...)
    return nnx.merge_state(frozen, jax.tree.map(read, trained, perturbations))


@jax.custom_vjp
def product(x: Float[Array, '... i'], kernel: Float[Array, 'i o']) -> Float[Array, '... o']:
    """Matrix product x @ kernel, with its gradient written out for a CPU.

    XLA would transpose the cotangent for the kernel's gradient, and so compute it twice, once in
    each order.
    """
    return x @ kernel


def _backward(kept, cotangent):
    x, kernel = kept
    cotangent = jax.lax.optimization_barrier(cotangent)

    def flat(a):
        return a.reshape(-1, a.shape[-1])

    return cotangent @ kernel.T, jnp.einsum('ni,no->io', flat(x), flat(cotangent))


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def summed_product(
    x: Float[Array, '... i'], kernel: Float[Array, 'i o'], axes: tuple[str | None, str | None]
) -> Float[Array, '... o']:
    """Matrix product x @ kernel, whose kernel's gradient every device sums over its own tokens first.

    Where tokens are sharded over the rows of a batch and along them, the compiler would bring the
    activations of all devices to each, to shard the gradient as the kernel is: at 32k tokens they are
    many times larger.

    Args:
        x: activations.
        kernel: of a linear layer.
        axes: logical axes of the kernel.
    """
    return x @ kernel


def _summed_backward(axes, kept, cotangent):
    x, kernel = kept
    gradient = jnp.einsum('...i,...o->io', x, cotangent)
    whole = tuple(None if axis == 'embed' else axis for axis in axes)
    return cotangent @ kernel.T, constrain(gradient, whole)


summed_product.defvjp(lambda x, kernel, axes: (x @ kernel, (x, kernel)), _summed_backward)


def multiply(
    x: Float[Array, '... i'], kernel: Float[Array, 'i o'], axes: tuple[str | None, str | None]
) -> Float[Array, '... o']:
    """Matrix product x @ kernel, in the form that suits platform and mesh.

    Args:
        x: activations.
        kernel: of a linear layer.
        axes: logical axes of the kernel.
    """
    if sequence_shards() > 1:
        return summed_product(x, kernel, axes)
    return (product if platform() == 'cpu' else jnp.matmul)(x, kernel)


class Linear(nnx.Module):
    """Linear layer y = x W + b with W [in, out], and where it has an adapter (lora.py) its addition.

    Args:
        rngs: random numbers of the initializer.
        in_width: width of x.
        out_width: width of y.
        axes: logical names of the two axes of W.
        hf: name of the Hugging Face module.
        bias: whether there is b.
        layers: size of a leading layer axis that the caller scans over; None for no such axis.
        layout: of the Hugging Face tensor of W, see `parameter`.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        in_width: int,
        out_width: int,
        axes: tuple[str, str],
        hf: str,
        *,
        bias: bool = False,
        layers: int | None = None,
        layout: str = 'transposed',
    ):
        lead, names = ((), ()) if layers is None else ((layers,), ('layers',))
        self.kernel = parameter(
            rngs,
            (*lead, in_width, out_width),
            (*names, *axes),
            f'{hf}.weight',
            scale=1 / math.sqrt(in_width),
            layout=layout,
        )
        self.bias = (
            parameter(rngs, (*lead, out_width), (*names, axes[1]), f'{hf}.bias', init='zeros')
            if bias
            else None
        )
        self.adapter = nnx.data(None)  # `lora.add_adapters` puts a module here

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
        """Linear map of the last axis."""
        y = multiply(x, self.kernel[...].astype(x.dtype), self.kernel.axes[-2:])
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        return y if self.adapter is None else y + self.adapter(x)


class RMSNorm(nnx.Module):
    """RMS normalization x / rms(x) · w, the mean square in float32 (arXiv 1910.07467)."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        width: int,
        hf: str,
        *,
        epsilon: float = 1e-6,
        layers: int | None = None,
    ):
        lead, names = ((), ()) if layers is None else ((layers,), ('layers',))
        self.epsilon = epsilon
        self.scale = parameter(rngs, (*lead, width), (*names, 'norm'), f'{hf}.weight', init='ones')

    def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... d']:
        """Normalized x, over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * x32.astype(x.dtype)


class LayerNorm(RMSNorm):
    """Layer normalization (x - mean) / std · w + b, in float32 (arXiv 1607.06450)."""

    def __init__(self, rngs: nnx.Rngs, width: int, hf: str, *, layers: int | None = None):
        super().__init__(rngs, width, hf, layers=layers)
        self.bias = parameter(rngs, self.scale.shape, self.scale.axes, f'{hf}.bias', init='zeros')

    def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... d']:
        """Normalized x, over the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)


class PlainMLP(nnx.Module):
    """Feed-forward layer of two matrices, fc2(gelu(fc1 x)), each with a bias.

    Args:
        rngs: random numbers of the initializers.
        widths: of x, between the matrices, and of the output.
        hf: name of the Hugging Face module.
        tanh: gelu's approximation by tanh; the exact one if False.
        layers: size of a leading layer axis.
        names: of the two Hugging Face modules.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        widths: tuple[int, int, int],
        hf: str,
        *,
        tanh: bool,
        layers: int | None = None,
        names: tuple[str, str] = ('linear_fc1', 'linear_fc2'),
    ):
        (i, h, o), (first, last) = widths, names
        self.hidden = Linear(
            rngs, i, h, ('embed', 'mlp'), f'{hf}.{first}', bias=True, layers=layers
        )
        self.out = Linear(rngs, h, o, ('mlp', 'embed'), f'{hf}.{last}', bias=True, layers=layers)
        self.tanh = tanh

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
        """Output of the feed-forward layer."""
        return self.out(jax.nn.gelu(self.hidden(x), approximate=self.tanh))


class GatedMLP(nnx.Module):
    """SwiGLU feed-forward layer down(silu(gate x) · up x) (arXiv 2002.05202)."""

    def __init__(
        self, rngs: nnx.Rngs, width: int, hidden: int, hf: str, *, bias: bool, layers: int
    ):
        def make(i, o, axes, name):
            return Linear(rngs, i, o, axes, f'{hf}.{name}', bias=bias, layers=layers)

        self.gate = make(width, hidden, ('embed', 'mlp'), 'gate_proj')
        self.up = make(width, hidden, ('embed', 'mlp'), 'up_proj')
        self.down = make(hidden, width, ('mlp', 'embed'), 'down_proj')

    def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... d']:
        """Output of the feed-forward layer."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
