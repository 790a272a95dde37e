"""Policies in the checkpoints of a run: found, and read with the policy that training began with.

A checkpoint, WORKDIR/STAGE/checkpoints/STEP, holds what is trained. Tokenizer, processor and the frozen
tower are those of the policy directory that STAGE/start.json names.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.model.lora import merge_adapters
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import shardings
from sensesearch_jax.runtime.workdir import atomic_write
from sensesearch_jax.training.checkpointing import read_step
from sensesearch_jax.training.trained_part import to_train, trained_part

POCKET_POLICY = Path(__file__).parent.parent / 'pocket' / 'policy'
START, CHECKPOINTS = 'start.json', 'checkpoints'
NO_ADAPTERS = {'rank': 0, 'alpha': 1.0, 'targets': ()}


def note_start(stage: Path, policy: Path) -> None:
    """Writes down which policy a stage's checkpoints belong to.

    Args:
        stage: folder of the stage, which all processes share.
        policy: the directory that training starts from.
    """
    if multihost.is_main():
        stage.mkdir(parents=True, exist_ok=True)
        atomic_write(stage / START, json.dumps({'policy': str(policy.absolute())}) + '\n')


def is_checkpoint(folder: Path) -> bool:
    """Whether a path is that of a checkpoint of a stage, kept or not."""
    return (
        folder.name.isdigit()
        and folder.parent.name == CHECKPOINTS
        and (folder.parent.parent / START).is_file()
    )


def steps_in(stage: Path) -> list[int]:
    """The steps of a stage whose checkpoints are complete, oldest first; a run may write others."""
    folders = (stage / CHECKPOINTS).glob('*')
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def policy_files(folder: str | Path) -> Path:
    """The directory with a policy's configuration, tokenizer and processor: its own, or of a
    checkpoint the one of the policy that training began with.

    Args:
        folder: a Hugging Face directory or a checkpoint; '' is the project's own base policy.

    Raises:
        UserError: there is no such checkpoint, or the policy that it began with is gone.
    """
    folder = Path(folder) if str(folder) else POCKET_POLICY
    if not is_checkpoint(folder):
        return folder
    stage = folder.parent.parent
    if not folder.is_dir():
        raise UserError(f'{folder} is not kept; {stage} has the checkpoints {steps_in(stage)}.')
    start = Path(json.loads((stage / START).read_text())['policy'])
    if not start.is_dir():
        raise UserError(
            f'{folder} is a checkpoint of training from {start}, which is gone; put it back, or its path into '
            f'{stage / START}.'
        )
    return policy_files(start)


def read_policy(folder: Path, dtype: DTypeLike, mesh: Mesh) -> Policy:
    """The policy of a Hugging Face directory or of a checkpoint.

    Args:
        folder: either of them.
        dtype: of its parameters.
        mesh: over which they are sharded.

    Raises:
        UserError: neither, or of another layout.
    """
    if not is_checkpoint(folder):
        return load_policy(folder, dtype, mesh)
    policy_files(folder)  # says what is missing
    stage = folder.parent.parent
    start = Path(json.loads((stage / START).read_text())['policy'])
    settings = json.loads((stage.parent / 'config.json').read_text())[stage.name]
    config = ConfigDict({'lora': NO_ADAPTERS} | settings)  # older runs have no such field
    # Frozen matrices are read in the type that the adapters were trained beside.
    policy = read_policy(start, config.dtype if config.lora.rank else dtype, mesh)
    policy = to_train(policy, config, seed=0)  # its adapters are read below
    trained = nnx.state(policy, trained_part(config))
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, 'float32', sharding=place),
        trained,
        shardings(trained, mesh),
    )
    # The policy that a stage writes at its end is the mean where one is kept.
    part = 'mean' if config.get('averaged', False) else 'parameters'
    found = read_step(folder, {part: target})[part]
    nnx.update(policy, found)
    policy = merge_adapters(policy)
    nnx.update(policy, jax.tree.map(lambda x: x.astype(dtype), nnx.state(policy)))
    return policy
