"""Pieces that benchmarks share: policies with random weights, pictures, operations, clocks, tables."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict
from PIL import Image

from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.training.flops import forward_flops
from sensesearch_jax.training.optimizer import make_optimizer

GIB = 2.0**30


class Lengths(NamedTuple):
    """Tokens of a row: its prompt, the visual ones among them, and each trajectory after it."""

    prompt: int
    visual: int
    suffix: int


def group_flops(sizes: PolicySizes, members: int, lengths: Lengths) -> float:
    """FLOPs of the decoder's forward pass over one group of so many equal members."""
    return forward_flops(sizes.language, [lengths.prompt], [[lengths.suffix] * members])


def with_layers(sizes: PolicySizes, layers: int) -> PolicySizes:
    """The same policy with so many decoder layers; with all of them for 0."""
    language = dataclasses.replace(sizes.language, layers=layers or sizes.language.layers)
    return dataclasses.replace(sizes, language=language)


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
        elif path[-1] in ('gate_up', 'down'):  # of experts
            inputs = parameter.shape[-3 if path[-1] == 'gate_up' else -2]
            value = draw(jax.random.key(i), parameter.shape, inputs**-0.5)
        elif path[-1] in ('embedding', 'untied_head', 'positions'):
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


class Pictures:
    """Random pictures by content hash, in the place of a tool server."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.random = np.random.default_rng(0)

    def draw(self, size: Sequence[int]) -> ImageRef:
        """A new picture of (width, height) pixels."""
        pixels = self.random.integers(0, 255, (size[1] // 28, size[0] // 28, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(buffer, 'PNG')
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.files[name] = buffer.getvalue()
        return ImageRef(name, *size)

    def image(self, name: str) -> bytes:
        """A picture's file, as a tool client gives it."""
        return self.files[name]


def clock(work: Callable, *args: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    began = time.perf_counter()
    out = jax.block_until_ready(work(*args))
    return time.perf_counter() - began, out


def rates(n: int, m: int) -> tuple[float, float]:
    """FLOP/s of a product and bytes/s of a copy, read and written: the most that XLA gives here.

    Args:
        n: width of the matrices, of bfloat16, or on a CPU of float32.
        m: numbers that are copied.
    """
    times, dtype = 10, jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    # Scaled so that products of products stay as large as they are.
    a, b = (n**-0.5 * jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a))
    add, x = jax.jit(lambda x: x + 1), jnp.ones(m)

    def best(*work: Any) -> float:
        return min(clock(*work)[0] for _ in range(6))

    return 2 * n**3 * times / best(product, a, b), 2 * x.nbytes / best(add, x)


def apart(work: Callable, *args: Any) -> Any:
    """The result of `work` in a process that has memory and accelerator to itself.

    Raises:
        BrokenProcessPool: the process died.
    """
    spawn = multiprocessing.get_context('spawn')  # a forked jax does not live
    with ProcessPoolExecutor(1, spawn) as process:
        return process.submit(work, *args).result()


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a table."""
    header, *lines = (f'| {" | ".join(map(str, line))} |' for line in (columns, *rows))
    return [header, '|' + '---|' * len(columns), *lines]
