"""Hugging Face checkpoints (config.json, safetensors) of policies: loading and saving.

Each parameter's declaration holds its Hugging Face name and layout (parameters.py). `tensor_table`
lists them for loading and for saving.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.families import module_name
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.processor_files import LEGACY_TEMPLATE, TEMPLATE, companions
from sensesearch_jax.model.safetensors_io import (
    PendingTensor,
    StoredTensor,
    open_tensors,
    write_tensors,
)
from sensesearch_jax.model.saving import put_in_place, stage
from sensesearch_jax.runtime.mesh import make_mesh, spec

SHARD_BYTES = 2 << 30
HEAD = 'lm_head.weight'
EMBEDDING = 'model.language_model.embed_tokens.weight'
FLOATS = ('F32', 'BF16', 'F16')  # safetensors' names of the number types that are read


class ParameterTensors(NamedTuple):
    """Parameter and its tensors in a checkpoint: one, or one per layer of a stacked parameter."""

    parameter: nnx.Param
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of each tensor in the file
    stacked: bool


def tensor_table(policy: Policy, state: nnx.State) -> list[ParameterTensors]:
    """Names and shapes of the tensors of each parameter in a Hugging Face checkpoint of a policy.

    Args:
        policy: for its sizes.
        state: its parameters, `nnx.state(policy, nnx.Param)`, or a state of that form: abstract
            parameters, gradients.
    """
    vision = policy.sizes.vision
    patch = (vision.channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    table = []
    for _, parameter in nnx.to_flat_state(state):
        stacked = parameter.axes[0] == 'layers'
        each = parameter.shape[1:] if stacked else parameter.shape
        shape = {
            'same': each,
            'transposed': each[::-1],
            'flattened': (each[-1], *patch),
            'paired': (*each[:-2], math.prod(each[-2:])),
        }[parameter.layout]
        layers = range(parameter.shape[0]) if stacked else (None,)
        table.append(
            ParameterTensors(
                parameter, tuple(parameter.hf.format(layer) for layer in layers), shape, stacked
            )
        )
    return table


def load_policy(
    folder: str | Path, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> Policy:
    """Policy from a Hugging Face directory, its parameters sharded over a mesh.

    A process reads only the shards of its devices, one tensor of the file at a time, so that host
    memory stays at a small multiple of the largest tensor whatever the policy's size.

    Args:
        folder: holds config.json and model.safetensors, or shards with
            model.safetensors.index.json. Tensors are named as in the released Qwen2.5-VL files
            ('model.layers…', 'visual…') or, as in those of Qwen3-VL, as the modules of transformers 5
            ('model.language_model.layers…', 'model.visual…').
        dtype: of the parameters in memory, float32 or bfloat16.
        mesh: that the parameters are placed on, sharded by the rules of runtime/mesh.py; the first
            device alone by default.

    Raises:
        UserError: not a policy directory, another model type, or a tensor (named) that is missing,
            unknown, truncated, of another shape or no float.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f'{folder} is not a directory; give the directory of a Hugging Face policy.'
        )
    sizes = PolicySizes.from_directory(folder)
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    policy = abstract_policy(sizes)
    state = nnx.state(policy, nnx.Param)
    table = tensor_table(policy, state)
    with contextlib.ExitStack() as files:
        stored: dict[str, StoredTensor] = {}
        for tensor in open_tensors(folder, files):
            if module_name(tensor.key) in stored:
                raise UserError(f"{folder}: tensor '{tensor.key}' is in the checkpoint twice.")
            stored[module_name(tensor.key)] = tensor
        _check(folder, table, stored, sizes)
        for entry in table:
            entry.parameter.set_value(
                _loaded(entry, [stored[name] for name in entry.names], np.dtype(dtype), mesh)
            )
    nnx.update(policy, state)
    return policy


def abstract_policy(sizes: PolicySizes) -> Policy:
    """Abstract policy of these sizes: every parameter is a `jax.ShapeDtypeStruct`."""
    return nnx.eval_shape(lambda: Policy(sizes, nnx.Rngs(0)))


def save_policy(
    policy: Policy,
    folder: str | Path,
    copy_from: str | Path | None = None,
    dtype: DTypeLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a policy directory that `load_policy` and transformers read back bit-equal.

    In a program of several processes all of them call this together, and the first one writes.

    Args:
        policy: the policy to write.
        folder: made if absent. An interrupted save leaves the old policy, the new one, or none,
            which `load_policy` reports. Both are on disk for a while.
        copy_from: a policy directory whose tokenizer and preprocessor files go along, with the
            template and the stop tokens that the policy is trained under; see processor_files.py.
        dtype: of the tensors in the file; the policy's dtype by default. A tied head is not
            written.
        shard_bytes: size from which a checkpoint is split into several files; only a file of one
            larger tensor exceeds it.

    Raises:
        UserError: `copy_from` is not a directory, or one of its files cannot be read.
    """
    folder = Path(folder)
    if copy_from is not None and not Path(copy_from).is_dir():
        raise UserError(
            f'{copy_from} is not a directory; name the policy whose tokenizer is to be copied.'
        )
    beside = {} if copy_from is None else companions(Path(copy_from))
    dtype = np.dtype(dtype or policy.language.embedding[...].dtype)
    first = jax.process_index() == 0
    staged = stage(folder) if first else folder
    tensors = [
        PendingTensor(
            policy.sizes.family.released_name(name),
            entry.shape,
            functools.partial(in_file_layout, entry, layer, dtype),
        )
        for entry in tensor_table(policy, nnx.state(policy, nnx.Param))
        for layer, name in enumerate(entry.names)
    ]
    write_tensors(staged, tensors, dtype, shard_bytes, write=first)
    if first:
        for name, content in beside.items():
            (staged / name).write_bytes(content)
        config = json.dumps(policy.sizes.to_hf(dtype.name), indent=2) + '\n'
        (staged / 'config.json').write_text(config, encoding='utf-8')
        put_in_place(folder, outdated=(LEGACY_TEMPLATE,) if TEMPLATE in beside else ())
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f'saved {folder}')


def _loaded(
    entry: ParameterTensors, stored: list[StoredTensor], dtype: np.dtype, mesh: Mesh
) -> jax.Array:
    """Loaded parameter, on its devices; layers are stacked there, and read one by one."""
    parameter = entry.parameter
    sharding = NamedSharding(mesh, spec(parameter.axes, parameter.shape, mesh))
    if not entry.stacked:
        # A copy, since a buffer that JAX shares with NumPy cannot be donated to a training step.
        return _copied(_placed(stored[0], parameter.layout, parameter.shape, sharding, dtype))
    each = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
    stack = jnp.zeros(parameter.shape, dtype, device=sharding)
    for layer, tensor in enumerate(stored):
        value = _placed(tensor, parameter.layout, parameter.shape[1:], each, dtype)
        stack = _put(stack, value, np.int32(layer))
        # Dispatch would run ahead of the device, with all layers in the host's memory.
        stack.block_until_ready()
    return stack


_put = jax.jit(
    lambda stack, value, layer: jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0),
    donate_argnums=0,
)
_copied = jax.jit(jnp.copy)


def _placed(
    stored: StoredTensor,
    layout: str,
    shape: tuple[int, ...],
    sharding: NamedSharding,
    dtype: np.dtype,
) -> jax.Array:
    """Tensor of the file on its devices; a shard that several of them hold is read once."""
    parts: dict[tuple, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        if bounds not in parts:
            shard = [slice(*bound) for bound in bounds]
            if layout == 'same':
                value = stored.read(shard)
            elif layout == 'transposed':
                value = stored.read(shard[::-1]).T
            elif layout == 'paired':  # the last two dimensions here are one in the file
                value = stored.read(shard[:-2])
                value = value.reshape(*value.shape[:-1], *shape[-2:])[..., *shard[-2:]]
            else:  # a patch has one dimension here, and several in the file
                value = stored.read(shard[1:])
                value = value.reshape(len(value), -1).T[shard[0]]
            parts[bounds] = np.ascontiguousarray(value, dtype)
        return parts[bounds]

    return jax.make_array_from_callback(shape, sharding, read)


def in_file_layout(entry: ParameterTensors, layer: int, dtype: np.dtype) -> np.ndarray:
    """Tensor of one layer, on the host in the layout of the file.

    Args:
        entry: of the table.
        layer: index among its names.
        dtype: of the result.
    """
    value = entry.parameter[...]
    if entry.stacked:
        value = jax.lax.dynamic_index_in_dim(value, np.int32(layer), keepdims=False)
    if not value.is_fully_addressable:
        value = jax.device_put(value, NamedSharding(value.sharding.mesh, PartitionSpec()))
    host = np.asarray(value).astype(dtype, copy=False)
    return np.ascontiguousarray(
        (host if entry.parameter.layout in ('same', 'paired') else host.T).reshape(entry.shape)
    )


def _check(
    folder: Path, table: list[ParameterTensors], stored: dict[str, StoredTensor], sizes: PolicySizes
) -> None:
    """Raises if the tensors of a checkpoint are not exactly those of the policy."""
    expected = {name: entry.shape for entry in table for name in entry.names}
    if sizes.language.tied_head and HEAD in stored:
        # Some writers keep the tied head, which is ignored if it equals the embedding.
        head, embedding = stored.pop(HEAD), stored.get(EMBEDDING)
        if embedding and not np.array_equal(head.read(), embedding.read()):
            raise UserError(
                f"{folder}: config.json ties head and embedding, but tensor '{HEAD}' differs."
            )
    for name, shape in expected.items():
        if name not in stored:
            missing = sizes.family.released_name(name)
            raise UserError(f"{folder}: tensor '{missing}' is missing.")
        if len(shape) == 3 and stored[name].shape == (shape[0], shape[2], shape[1]):
            # transformers 5 writes an expert's matrices the other way round than released files.
            stored[name] = stored[name].swapaxes()
        if stored[name].shape != shape:
            raise UserError(
                f"{folder}: tensor '{stored[name].key}' has shape {stored[name].shape}; "
                f'config.json asks for {shape}.'
            )
        if stored[name].dtype not in FLOATS:
            raise UserError(
                f"{folder}: tensor '{stored[name].key}' is of type {stored[name].dtype}; "
                f'only {", ".join(FLOATS)} are read.'
            )
    for name in sorted(stored.keys() - expected.keys()):
        raise UserError(f"{folder}: tensor '{stored[name].key}' is no part of this policy.")
