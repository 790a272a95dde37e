"""Calls of tunix's sampler on text, one for each line on stdin; run by experiments/benchmarks/peers/process.py
in its environment.

Arguments: a directory with a decoder's config.json and safetensors, sequences at once, tokens of
the prompt, tokens to sample. Its first line is empty, each later one the seconds of decoding: those
of a call that samples all tokens, less those of one that samples a single one. Greedy, which costs
it least.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors


class Numbers:
    """A tokenizer whose text is the tokens' numbers."""

    def __init__(self, end: int):
        self.end = end

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return ' '.join(map(str, ids))

    def bos_id(self):
        return self.end

    def eos_id(self):
        return self.end

    def pad_id(self):
        return self.end


def main(folder: str, sequences: int, prompt: int, tokens: int) -> None:
    sizes = json.loads((Path(folder) / 'config.json').read_text())['text_config']
    config = ModelConfig(
        num_layers=sizes['num_hidden_layers'],
        vocab_size=sizes['vocab_size'],
        embed_dim=sizes['hidden_size'],
        hidden_dim=sizes['intermediate_size'],
        num_heads=sizes['num_attention_heads'],
        head_dim=sizes['hidden_size'] // sizes['num_attention_heads'],
        num_kv_heads=sizes['num_key_value_heads'],
        rope_theta=sizes['rope_parameters']['rope_theta'],
        norm_eps=sizes['rms_norm_eps'],
        use_tied_embedding=True,
    )
    model = create_model_from_safe_tensors(folder, config)
    end = sizes['vocab_size'] - 1
    caches = CacheConfig(prompt + tokens, config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(model, Numbers(end), caches)
    words = ' '.join(map(str, np.random.default_rng(0).integers(0, 2000, prompt - 1)))

    def call(steps: int) -> float:
        began = time.perf_counter()
        found = sampler(
            [words] * sequences,
            max_generation_steps=steps,
            max_prompt_length=prompt,
            forbidden_tokens=[end],
        )
        assert min(len(ids) for ids in found.tokens) >= steps - 1
        return time.perf_counter() - began

    print(flush=True)
    while sys.stdin.readline():
        print(call(tokens) - call(1), flush=True)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:5]))
