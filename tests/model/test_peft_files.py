"""Adapters as the library PEFT reads them: on transformers' policy they give what our merged one does."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file
from tiny_policies import Conversation, both, difference, noise_picture
from transformers import AutoModelForImageTextToText

from sensesearch_jax.model.hf_checkpoint import save_policy
from sensesearch_jax.model.lora import TARGETS, Lora, add_adapters, is_adapter, merge_adapters
from sensesearch_jax.model.peft_files import save_adapters

peft = pytest.importorskip('peft')


def test_peft_puts_our_adapters_onto_transformers_policy(tmp_path):
    """A Qwen2.5-VL; the tower's layers, some of the same names, get none."""
    policy, lora = both('untied')[1], Lora(rank=3, alpha=4.5, targets=TARGETS)
    adapted, random = add_adapters(policy, lora, seed=1), np.random.default_rng(0)
    state = nnx.state(adapted, is_adapter)
    for _, parameter in nnx.to_flat_state(state):
        parameter.set_value(jnp.asarray(0.2 * random.normal(size=parameter.shape), jnp.float32))
    nnx.update(adapted, state)
    save_policy(policy, tmp_path / 'base')
    save_policy(merge_adapters(adapted), tmp_path / 'merged')
    save_adapters(adapted, lora, tmp_path / 'base', tmp_path / 'adapter')

    def read(folder):
        return AutoModelForImageTextToText.from_pretrained(tmp_path / folder)

    inputs = Conversation.build([4, noise_picture(90, 60, 1), 5]).for_reference()
    with torch.no_grad():
        plain, merged = (read(folder)(**inputs).logits for folder in ('base', 'merged'))
        theirs = peft.PeftModel.from_pretrained(read('base'), tmp_path / 'adapter')
        logits = theirs(**inputs).logits
    assert difference(logits, merged) < 1e-5 and difference(plain, merged) > 0.05
    theirs.save_pretrained(tmp_path / 'again')
    ours, again = (
        load_file(tmp_path / folder / 'adapter_model.safetensors')
        for folder in ('adapter', 'again')
    )
    assert ours.keys() == again.keys() and len(ours) == 2 * len(TARGETS) * 3
    assert all(torch.equal(tensor, again[key]) for key, tensor in ours.items())
