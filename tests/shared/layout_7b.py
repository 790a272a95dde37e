"""Random policies in the layout of the directories of Qwen2.5-VL-7B-Instruct and
Qwen3-VL-8B-Instruct, with tiny layers and the real vocabulary."""

import json

import jax.numpy as jnp
from flax import nnx
from toy_policy import TURN

from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.model.config import RELEASED, LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import save_policy
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.pocket.pretraining.train_tokenizer import (
    CONTROL_TOKENS,
    ORDINARY_TOKENS,
    train_tokenizer,
)

FIRST_CONTROL = 151_643  # <|endoftext|>


def write_tokenizer(folder):
    """151,643 ordinary tokens, most of them fillers that no text has, and Qwen's control tokens
    behind them."""
    train_tokenizer([DEFAULT.system_prompt(TOOLS), TURN] * 20, folder, 640)
    path = folder / 'tokenizer.json'
    content = json.loads(path.read_text())
    vocabulary = content['model']['vocab']
    vocabulary |= {f'filler{i}': i for i in range(len(vocabulary), FIRST_CONTROL)}
    names = [*CONTROL_TOKENS, *ORDINARY_TOKENS]
    for token in content['added_tokens']:
        token['id'] = FIRST_CONTROL + names.index(token['content'])
    content['added_tokens'].sort(key=lambda token: token['id'])
    path.write_text(json.dumps(content))


def write_policy(folder, release='7B'):
    """bfloat16 in several files with an index; all rows of the vocabulary (152,064 or 151,936), of
    which the tokenizer knows 151,665; an untied head."""
    folder.mkdir()
    write_tokenizer(folder)
    real = RELEASED[release]
    sizes = PolicySizes(
        VisionSizes(depth=2, width=16, mlp_width=16, heads=2, out_width=32, full_attention_blocks=(1,)),
        LanguageSizes(layers=2, width=32, mlp_width=32, heads=4, kv_heads=4, vocabulary=real.language.vocabulary,
                      mrope_sections=(1, 1, 2)),
        image_token=real.image_token, vision_start_token=real.vision_start_token,
        vision_end_token=real.vision_end_token, video_token=real.video_token,
        end_tokens=real.end_tokens).adapted(real.model_type)  # fmt: skip
    processor = {
        'image_processor_type': 'Qwen2VLImageProcessor',
        'min_pixels': 3136,
        'max_pixels': 12_845_056,
        'patch_size': sizes.vision.patch_size,
        'temporal_patch_size': 2,
        'merge_size': 2,
    }
    if real.family.colour is not None:
        colour = [real.family.colour] * 3
        processor |= {'image_mean': colour, 'image_std': colour}
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    save_policy(Policy(sizes, nnx.Rngs(0)), folder, dtype=jnp.bfloat16, shard_bytes=8_000_000)
    assert (
        len(list(folder.glob('model-*.safetensors'))) > 1
        and (folder / 'model.safetensors.index.json').is_file()
    )
