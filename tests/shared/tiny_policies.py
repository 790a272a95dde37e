"""Tiny random policies of all families, transformers' and ours, and conversations with pictures
for both."""

import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.rope import mrope_positions
from sensesearch_jax.model.vision_windows import batch_images, window_slots

torch.set_num_threads(1)

PREPROCESSOR = Preprocessor(min_pixels=28 * 28, max_pixels=28 * 28 * 40)
VOCABULARY, PAD, START, END, VIDEO, STOP = 96, 90, 91, 92, 93, 94


def random_geometry(seed):
    """Text and vision fields of a Qwen3-VL of random sizes: dense and with experts, tied and untied,
    with heads that are no share of the width."""
    random = np.random.default_rng(seed)

    def one_of(*choices):
        return choices[random.integers(len(choices))]

    kv_heads, head_dim, depth = one_of(1, 2), one_of(8, 16, 24), int(random.integers(2, 5))
    half = head_dim // 2
    row, column = int(random.integers(1, half // 3 + 1)), int(random.integers(1, half // 3 + 1))
    layers = int(random.integers(2, 6))
    blocks = random.permutation(depth)[: min(layers, int(random.integers(1, 4)))]
    heads = one_of(1, 2, 3)
    text = dict(
        hidden_size=one_of(24, 32, 40),
        num_attention_heads=kv_heads * one_of(1, 2, 3),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=layers,
        intermediate_size=one_of(40, 56),
        rms_norm_eps=one_of(1e-6, 1e-5),
        sections=[half - row - column, row, column],
        rope_theta=one_of(1e4, 5e6),
    )
    vision = dict(
        hidden_size=heads * one_of(8, 16),
        num_heads=heads,
        depth=depth,
        intermediate_size=one_of(36, 44),
        num_position_embeddings=one_of(4, 7, 12) ** 2,
        deepstack_visual_indexes=sorted(int(block) for block in blocks),
        patch_size=14,
    )
    if seed % 3 == 2:
        experts = one_of(4, 6)
        text |= dict(
            num_experts=experts, num_experts_per_tok=one_of(2, 3), moe_intermediate_size=28
        )
    return text, vision


def hf_config(name):
    """Policies that differ in all that the code tells apart; 'random-N' of the second family."""
    if name.startswith('random'):
        seed = int(name.split('-')[1])
        text, vision = random_geometry(seed)
        kind = Qwen3VLMoeConfig if 'num_experts' in text else Qwen3VLConfig
        return _hf_config(kind, text, vision, tied=seed % 2 == 0)
    text, vision = {
        # Tied head, 2 queries per key, windows of 4 tokens, the last block full.
        'tied': (
            dict(
                hidden_size=32,
                num_attention_heads=2,
                num_key_value_heads=1,
                num_hidden_layers=2,
                intermediate_size=48,
                rms_norm_eps=1e-6,
                sections=[2, 3, 3],
            ),
            dict(
                hidden_size=32,
                num_heads=2,
                depth=3,
                intermediate_size=40,
                window_size=112,
                fullatt_block_indexes=[2],
            ),
        ),
        # Untied head, no grouping, windows of 2 tokens, the first block full, another rotary base.
        'untied': (
            dict(
                hidden_size=64,
                num_attention_heads=4,
                num_key_value_heads=4,
                num_hidden_layers=3,
                intermediate_size=80,
                rms_norm_eps=1e-5,
                sections=[4, 2, 2],
                rope_theta=5000.0,
            ),
            dict(
                hidden_size=48,
                num_heads=3,
                depth=2,
                intermediate_size=64,
                window_size=56,
                fullatt_block_indexes=[0],
            ),
        ),
        # 3 queries per key, windows of 3 tokens, full blocks around a windowed one.
        'grouped': (
            dict(
                hidden_size=48,
                num_attention_heads=6,
                num_key_value_heads=2,
                num_hidden_layers=2,
                intermediate_size=64,
                rms_norm_eps=1e-6,
                sections=[1, 1, 2],
            ),
            dict(
                hidden_size=24,
                num_heads=2,
                depth=3,
                intermediate_size=36,
                window_size=84,
                fullatt_block_indexes=[0, 2],
            ),
        ),
        # Experts, heads wider than their share, deepstack from the first block on.
        'sparse': (
            dict(
                hidden_size=40,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                num_hidden_layers=3,
                intermediate_size=64,
                moe_intermediate_size=24,
                num_experts=6,
                num_experts_per_tok=2,
                rms_norm_eps=1e-6,
                sections=[4, 2, 2],
                rope_theta=1e4,
            ),
            dict(
                hidden_size=32,
                num_heads=2,
                depth=4,
                intermediate_size=40,
                num_position_embeddings=49,
                deepstack_visual_indexes=[0, 1, 3],
                patch_size=14,
            ),
        ),
        # A tied head, fewer deepstack mergers than layers.
        'deep': (
            dict(
                hidden_size=32,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=24,
                num_hidden_layers=3,
                intermediate_size=48,
                rms_norm_eps=1e-5,
                sections=[5, 4, 3],
                rope_theta=5e6,
            ),
            dict(
                hidden_size=48,
                num_heads=3,
                depth=3,
                intermediate_size=40,
                num_position_embeddings=144,
                deepstack_visual_indexes=[0, 2],
                patch_size=14,
            ),
        ),
    }[name]
    kind = {'sparse': Qwen3VLMoeConfig, 'deep': Qwen3VLConfig}.get(name, Qwen2_5_VLConfig)
    return _hf_config(kind, text, vision, tied=name in ('tied', 'deep'))


def _hf_config(kind, text, vision, tied):
    rope = {
        'rope_type': 'default',
        'rope_theta': text.pop('rope_theta', 1e6),
        'mrope_section': text.pop('sections'),
    }
    if kind is not Qwen2_5_VLConfig:
        rope['mrope_interleaved'] = True
    return kind(
        text_config=text
        | dict(
            vocab_size=VOCABULARY,
            rope_parameters=rope,
            bos_token_id=None,
            eos_token_id=STOP,
            max_position_embeddings=2048,
        ),
        vision_config=vision | dict(out_hidden_size=text['hidden_size']),
        tie_word_embeddings=tied,
        image_token_id=PAD,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=VIDEO,
    )


def reference_policy(name, seed=8):
    """Transformers' model with every parameter random and large enough to matter (norms and biases
    too)."""
    config = hf_config(name)
    model = AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    # With large embeddings a tied head would only repeat the token that it has just read.
    embedding_scale = 0.03 if config.tie_word_embeddings else 0.2
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 'norm' in key or 'ln_q' in key:
                parameter.copy_(1 + 0.2 * noise)
            elif key.endswith('bias'):
                parameter.copy_(0.2 * noise)
            else:
                inputs = parameter.shape[-1] if 'experts' in key else parameter[0].numel()
                scale = embedding_scale if 'embed_tokens' in key else inputs**-0.5
                parameter.copy_(scale * noise)
    return model


@functools.cache
def both(name):
    """The same policy twice: transformers', and ours read from the files that it wrote."""
    # With other seeds these two soon repeat themselves.
    model = reference_policy(name, {'deep': 14, 'sparse': 11}.get(name, 8))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, load_policy(folder)


def noise_picture(width, height, seed):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


@dataclasses.dataclass
class Conversation:
    """Tokens and pictures as both implementations want them."""

    tokens: np.ndarray  # [n]
    grids: list[tuple[int, int, int]]
    patches: list[np.ndarray]

    @classmethod
    def build(cls, parts, seed=0):
        """From parts that are the length of a random text or a picture."""
        random = np.random.default_rng(seed)
        tokens, grids, patches = [], [], []
        for part in parts:
            if isinstance(part, int):
                tokens += random.integers(0, PAD, part).tolist()
            else:
                pixels, grid = PREPROCESSOR.patches(part)
                tokens += [START, *[PAD] * PREPROCESSOR.merged_tokens(*part.size), END]
                grids.append(grid)
                patches.append(pixels)
        return cls(np.array(tokens, np.int32), grids, patches)

    def for_reference(self):
        ids = torch.tensor(self.tokens[None], dtype=torch.long)
        return dict(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == PAD).int(),
            pixel_values=torch.tensor(np.concatenate(self.patches)),
            image_grid_thw=torch.tensor(self.grids),
        )

    def positions(self, start=0):
        """[3, n] and the next position."""
        return mrope_positions(self.tokens, self.grids, PAD, PREPROCESSOR.merge_size, start)

    def feature_index(self, rows):
        """Row of the feature table of each token, -1 on text: [n]; the table has `rows` for each
        picture."""
        index = np.full(len(self.tokens), -1, np.int32)
        counts = [h * w // PREPROCESSOR.merge_size**2 for _, h, w in self.grids]
        index[self.tokens == PAD] = np.concatenate(
            [picture * rows + np.arange(count) for picture, count in enumerate(counts)] or [[]]
        )
        return index


def arranged(policy, conversation):
    """All pictures in one padded batch, as the tower takes them: patches, positions, valid, order."""
    sizes = policy.sizes.vision
    # One spare window, so that every comparison also says that padding does not matter.
    slots = sizes.window_tokens**2 + max(
        window_slots(h // sizes.merge_size, w // sizes.merge_size, sizes.window_tokens)
        for _, h, w in conversation.grids
    )
    images = list(zip(conversation.patches, conversation.grids, strict=True))
    return [jnp.asarray(field) for field in batch_images(images, sizes, slots=slots)[:4]]


def feature_table(policy, batch):
    """The tower's output, all pictures one after another with their padding: [f, d]."""
    out = policy.vision(*batch)
    return out.reshape(-1, out.shape[-1])


@dataclasses.dataclass
class Rows:
    """A padded token sequence: tokens, feature rows and validity [1, 1, s], positions [3, 1, 1, s]."""

    tokens: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, conversation, rows, size=None, start=0):
        """One conversation, or a turn of it that starts at position `start`, padded to `size`."""
        count = len(conversation.tokens)
        shape = (1, 1, size or count)
        out = cls(
            np.zeros(shape, np.int32),
            np.full(shape, -1, np.int32),
            np.zeros((3, *shape), np.int32),
            np.zeros(shape, bool),
        )
        out.tokens[..., :count] = conversation.tokens
        out.index[..., :count] = conversation.feature_index(rows)
        out.positions[:, 0, 0, :count] = conversation.positions(start)[0]
        out.valid[..., :count] = True
        return out

    def arrays(self):
        return [
            jnp.asarray(field) for field in (self.tokens, self.index, self.positions, self.valid)
        ]


def run_tokens(policy, table, rows, contexts=()):
    """Hidden states [b, g, s, d] of tokens, and their keys and values."""
    tokens, index, positions, valid = rows
    return policy.language(policy.embed(tokens, table[None], index), positions, valid, contexts)


def quick_jit(function):
    """jit for programs that run once: compiled in less than half of the time, slower to run."""
    return jax.jit(
        function,
        compiler_options={
            'xla_llvm_disable_expensive_passes': True,
            'xla_backend_optimization_level': 0,
        },
    )


def difference(ours, theirs):
    """Largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
