"""Policies in and out of Hugging Face directories (config.json, safetensors), the 7B just like the tiny one.

Each parameter's declaration holds its Hugging Face name and layout (policy/parameters.py); `tensor_table`
spells them out, and loading and saving both go by that one table.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sensesearch_jax.policy.qwen import Policy
from sensesearch_jax.policy.sizes import PolicySizes

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
HEAD = 'lm_head.weight'
EMBEDDING = 'model.language_model.embed_tokens.weight'
FLOATS = ('F32', 'BF16', 'F16')  # safetensors' names of the number types that are read

# What makes a directory a whole policy beside config and weights; those that the source has are copied.
COMPANIONS = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json',
    'merges.txt', 'chat_template.json', 'chat_template.jinja', 'preprocessor_config.json',
    'video_preprocessor_config.json', 'processor_config.json', 'generation_config.json',
)


class Row(NamedTuple):
    """One parameter and the tensors it is in a file: one, or one per layer along its first axis."""

    parameter: nnx.Param
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of each tensor in the file
    stacked: bool


class Stored(NamedTuple):
    """A tensor in an open safetensors file, not yet read."""

    file: Any
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """The tensor, of `shape`, in the type it is stored in."""
        return self.file.get_tensor(self.key)


def tensor_table(policy: Policy, state: nnx.State) -> list[Row]:
    """The table of names and shapes: what stands where in a Hugging Face checkpoint of this policy.

    Args:
        policy: gives the sizes.
        state: its parameters, `nnx.state(policy, nnx.Param)`, or anything of that form: abstract, gradients.
    """
    vision = policy.sizes.vision
    patch = (vision.channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    rows = []
    for _, parameter in nnx.to_flat_state(state):
        stacked = parameter.axes[0] == 'layers'
        own = parameter.shape[1:] if stacked else parameter.shape
        shape = {'same': own, 'transposed': own[::-1], 'flattened': (own[-1], *patch)}[parameter.layout]
        layers = range(parameter.shape[0]) if stacked else (None,)
        rows.append(Row(parameter, tuple(parameter.hf.format(layer) for layer in layers), shape, stacked))
    return rows


def module_name(name: str) -> str:
    """A tensor's name as the modules of transformers 5 have it, given that or its name in a released file."""
    if name.startswith('visual.'):
        return f'model.{name}'
    if name.startswith('model.') and not name.startswith(('model.visual.', 'model.language_model.')):
        return f'model.language_model.{name.removeprefix("model.")}'
    return name


def released_name(name: str) -> str:
    """The inverse: how the released Qwen2.5-VL files, and those that transformers 5 writes, call a tensor."""
    if name.startswith('model.visual.'):
        return name.removeprefix('model.')
    return name.replace('model.language_model.', 'model.', 1)


def load_policy(folder: str | Path, dtype: DTypeLike = jnp.float32,
                place: Callable[[np.ndarray, tuple[str, ...]], jax.Array] | None = None) -> Policy:
    """A policy from a Hugging Face directory.

    Args:
        folder: holds config.json and model.safetensors, or shards with model.safetensors.index.json. Tensors
            are named as in the released Qwen2.5-VL files ('model.layers…', 'visual…') or as the modules of
            transformers 5 ('model.language_model.layers…', 'model.visual…').
        dtype: of the parameters in memory, float32 or bfloat16.
        place: turns one parameter on the host, given with its logical axes, into a device array, so that a
            large policy goes straight to its shards; by default everything goes to the default device.

    Raises:
        ValueError: not a policy directory, another model type, or a tensor (named) that is missing, unknown,
            of another shape or no float.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a directory; give the directory of a Hugging Face policy.')
    sizes = PolicySizes.from_directory(folder)
    # A copy, since a buffer that JAX shares with NumPy could not be donated to a training step.
    place = place or (lambda array, axes: jnp.array(array))
    policy = nnx.eval_shape(lambda: Policy(sizes, nnx.Rngs(0)))
    state = nnx.state(policy, nnx.Param)
    rows = tensor_table(policy, state)
    with contextlib.ExitStack() as files:
        stored = _open_tensors(folder, files)
        _check(folder, rows, stored, sizes.language.tied_head)
        for row in rows:
            host = np.empty(row.parameter.shape, dtype)
            for layer, name in enumerate(row.names):
                tensor = stored[name].read()
                if row.parameter.layout != 'same':
                    tensor = tensor.reshape(tensor.shape[0], -1).T
                host[layer if row.stacked else ...] = tensor
            row.parameter.set_value(place(host, row.parameter.axes))
    nnx.update(policy, state)
    return policy


def save_policy(policy: Policy, folder: str | Path, copy_from: str | Path | None = None,
                dtype: DTypeLike | None = None) -> None:
    """Writes a directory that `load_policy` and transformers read back bit-equal.

    Args:
        folder: made if absent. The config is written last and every file replaces its elder at once, so an
            interrupted write leaves no half-written file under its final name.
        copy_from: a policy directory whose tokenizer, template and preprocessor files go along.
        dtype: of the tensors in the file; the policy's own by default. A tied head is not written.

    Raises:
        ValueError: `copy_from` is not a directory.
    """
    folder = Path(folder)
    if copy_from is not None and not Path(copy_from).is_dir():
        raise ValueError(f'{copy_from} is not a directory; name the policy whose tokenizer is to be copied.')
    dtype = np.dtype(dtype or policy.language.embedding[...].dtype)
    tensors = {}
    for row in tensor_table(policy, nnx.state(policy, nnx.Param)):
        host = np.asarray(jax.device_get(row.parameter[...])).astype(dtype, copy=False)
        for name, tensor in zip(row.names, host if row.stacked else (host,), strict=True):
            tensor = tensor if row.parameter.layout == 'same' else tensor.T
            tensors[released_name(name)] = np.ascontiguousarray(tensor.reshape(row.shape))
    folder.mkdir(parents=True, exist_ok=True)
    # transformers before 5 refuses files that do not say which framework wrote them.
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={'format': 'pt'}))
    for name in COMPANIONS if copy_from is not None else ():
        source = Path(copy_from) / name
        if source.is_file() and source.resolve() != (folder / name).resolve():
            _replace(folder / name, functools.partial(shutil.copyfile, source))
    config = json.dumps(policy.sizes.to_hf(dtype.name), indent=2) + '\n'
    _replace(folder / 'config.json', lambda path: path.write_text(config, encoding='utf-8'))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + '.partial')
    write(partial)
    os.replace(partial, path)


def _open_tensors(folder: Path, files: contextlib.ExitStack) -> dict[str, Stored]:
    """All tensors of a directory by their module's name; `files` keeps the files open."""
    found: dict[str, Stored] = {}
    for name in _weight_files(folder):
        try:
            file = files.enter_context(safe_open(folder / name, framework='numpy'))
        except (OSError, SafetensorError) as error:
            raise ValueError(f'{folder / name} cannot be read as safetensors: {error}.') from None
        for key in file.keys():
            if module_name(key) in found:
                raise ValueError(f"{folder / name}: tensor '{key}' is in the checkpoint twice.")
            part = file.get_slice(key)
            found[module_name(key)] = Stored(file, key, tuple(part.get_shape()), part.get_dtype())
    return found


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f'{folder} has neither {WEIGHTS} nor {INDEX}; other weight formats are not read.')
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding='utf-8'))['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{folder / INDEX} is not an index of safetensors files.') from None
    for name in names:
        # A downloaded index must not lead outside its directory.
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names the file '{name}', which is not in the directory.")
    return names


def _check(folder: Path, rows: list[Row], stored: dict[str, Stored], tied: bool) -> None:
    """Refuses a checkpoint whose tensors are not exactly those of the table."""
    expected = {name: row.shape for row in rows for name in row.names}
    if tied and HEAD in stored:
        # Some writers keep the tied head; it may stay as long as it says nothing else than the embedding.
        head, embedding = stored.pop(HEAD), stored.get(EMBEDDING)
        if embedding and not np.array_equal(head.read(), embedding.read()):
            raise ValueError(f"{folder}: config.json ties head and embedding, but tensor '{HEAD}' differs.")
    for name, shape in expected.items():
        if name not in stored:
            raise ValueError(f"{folder}: tensor '{released_name(name)}' is missing.")
        if stored[name].shape != shape:
            raise ValueError(f"{folder}: tensor '{stored[name].key}' has shape {stored[name].shape}; "
                             f'config.json asks for {shape}.')
        if stored[name].dtype not in FLOATS:
            raise ValueError(f"{folder}: tensor '{stored[name].key}' is of type {stored[name].dtype}; "
                             f'only {", ".join(FLOATS)} are read.')
    for name in sorted(stored.keys() - expected.keys()):
        raise ValueError(f"{folder}: tensor '{stored[name].key}' is no part of this policy.")
