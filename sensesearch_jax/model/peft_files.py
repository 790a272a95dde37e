"""Adapters in the layout of the library PEFT (adapter_config.json, adapter_model.safetensors), which puts
them on the policy that they were trained beside.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from sensesearch_jax.model.hf_checkpoint import in_file_layout, tensor_table
from sensesearch_jax.model.lora import Lora, is_adapter
from sensesearch_jax.model.policy import Policy

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def save_adapters(policy: Policy, lora: Lora, base: Path, folder: Path) -> None:
    """Writes the adapters of a policy, in float32, for `peft.PeftModel.from_pretrained`.

    Modules are named as in transformers 5. In a program of several processes all of them call this
    together, and the first one writes.

    Args:
        policy: with adapters.
        lora: their settings.
        base: directory of the policy that they were trained beside, which the file names.
        folder: the directory, made if absent; not one with a policy, or transformers would put the
            adapters onto it.
    """
    tensors = {
        name: in_file_layout(entry, layer, np.dtype(np.float32))
        for entry in tensor_table(policy, nnx.state(policy, is_adapter))
        for layer, name in enumerate(entry.names)
    }
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f'.{WEIGHTS}'
    save_file(tensors, staged, metadata={'format': 'pt'})
    os.replace(staged, folder / WEIGHTS)
    config = json.dumps(adapter_config(lora, base), indent=2) + '\n'
    (folder / CONFIG).write_text(config, encoding='utf-8')


def adapter_config(lora: Lora, base: Path) -> dict[str, object]:
    """Fields of adapter_config.json; the targets are those of the decoder alone, since the tower's
    layers have modules of the same names.
    """
    return {
        'peft_type': 'LORA',
        'base_model_name_or_path': str(base.absolute()),
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'target_modules': rf'.*\.language_model\.layers\..*\.({"|".join(lora.targets)})',
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
    }
