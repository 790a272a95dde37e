"""Sizes of a Qwen2.5-VL policy, read from and written to a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sensesearch_jax.errors import UserError

MODEL_TYPE = 'qwen2_5_vl'


@dataclasses.dataclass(frozen=True)
class VisionSizes:
    """Sizes of the vision tower.

    `window_size` is in pixels, `full_attention_blocks` are indices of blocks.
    """

    depth: int
    width: int
    mlp_width: int
    heads: int
    out_width: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 112
    channels: int = 3
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)
    rope_theta: float = 10_000.0

    @property
    def patch_width(self) -> int:
        """Width of a flattened patch."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_tokens(self) -> int:
        """Merged tokens along one side of an attention window."""
        return self.window_size // self.merge_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class LanguageSizes:
    """Sizes of the text decoder.

    `mrope_sections` are the numbers of rotary frequencies of time, row and column; their sum is half
    the head width.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    rope_theta: float = 1_000_000.0
    mrope_sections: tuple[int, int, int] = (16, 24, 24)
    norm_epsilon: float = 1e-6
    tied_head: bool = False
    max_positions: int = 128_000

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class PolicySizes:
    """Sizes of a policy: of its two parts, and the ids of its special tokens."""

    vision: VisionSizes
    language: LanguageSizes
    image_token: int
    vision_start_token: int
    vision_end_token: int
    video_token: int
    end_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        text, vision = self.language, self.vision
        if text.width % text.heads or text.heads % text.kv_heads:
            raise UserError(
                f'{text.heads} heads must divide width {text.width} and be a multiple of '
                f'{text.kv_heads} key/value heads.'
            )
        if sum(text.mrope_sections) * 2 != text.head_width:
            raise UserError(
                f'mrope_section {text.mrope_sections} must sum to half the head width, '
                f'{text.head_width // 2}.'
            )
        if vision.out_width != text.width:
            raise UserError(
                f'The vision tower puts out width {vision.out_width}; the decoder has {text.width}.'
            )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> PolicySizes:
        """Sizes from the dictionary of a config.json, in the flat (released) or nested
        (transformers 5) form.

        Raises:
            UserError: another model type, a missing field, or an option that is not supported.
        """
        found = config.get('model_type')
        if found != MODEL_TYPE:
            raise UserError(f"This is a '{found}' directory; a '{MODEL_TYPE}' one is needed.")
        text = {**config, **config.get('text_config', {})}
        vision = config.get('vision_config')
        if vision is None:
            raise UserError('config.json has no vision_config.')
        if text.get('use_sliding_window'):
            raise UserError(
                'Sliding-window decoders are not supported; set use_sliding_window to false.'
            )
        for name, act in (
            ('decoder', text.get('hidden_act', 'silu')),
            ('tower', vision.get('hidden_act', 'silu')),
        ):
            if act != 'silu':
                raise UserError(f"The {name}'s hidden_act is '{act}'; only 'silu' is supported.")
        rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
        kind = rope.get('rope_type', rope.get('type', 'default'))
        if kind not in ('default', 'mrope'):
            raise UserError(f"Rotary scaling of type '{kind}' is not supported.")
        end = text.get('eos_token_id')
        try:
            return cls(
                vision=VisionSizes(
                    depth=vision['depth'],
                    width=vision['hidden_size'],
                    mlp_width=vision['intermediate_size'],
                    heads=vision['num_heads'],
                    out_width=vision['out_hidden_size'],
                    patch_size=vision.get('patch_size', vision.get('spatial_patch_size', 14)),
                    temporal_patch_size=vision.get('temporal_patch_size', 2),
                    merge_size=vision.get('spatial_merge_size', 2),
                    window_size=vision.get('window_size', 112),
                    channels=vision.get('in_channels', vision.get('in_chans', 3)),
                    full_attention_blocks=tuple(
                        vision.get('fullatt_block_indexes', (7, 15, 23, 31))
                    ),
                    rope_theta=float(
                        (vision.get('rope_parameters') or {}).get('rope_theta', 10_000.0)
                    ),
                ),
                language=LanguageSizes(
                    layers=text['num_hidden_layers'],
                    width=text['hidden_size'],
                    mlp_width=text['intermediate_size'],
                    heads=text['num_attention_heads'],
                    kv_heads=text.get('num_key_value_heads') or text['num_attention_heads'],
                    vocabulary=text['vocab_size'],
                    rope_theta=float(rope.get('rope_theta', text.get('rope_theta', 1_000_000.0))),
                    mrope_sections=tuple(rope.get('mrope_section', (16, 24, 24))),
                    norm_epsilon=text.get('rms_norm_eps', 1e-5),
                    tied_head=bool(
                        config.get('tie_word_embeddings') or text.get('tie_word_embeddings')
                    ),
                    max_positions=text.get('max_position_embeddings', 128_000),
                ),
                image_token=config.get('image_token_id', 151_655),
                vision_start_token=config.get('vision_start_token_id', 151_652),
                vision_end_token=config.get('vision_end_token_id', 151_653),
                video_token=config.get('video_token_id', 151_656),
                end_tokens=()
                if end is None
                else tuple(end)
                if isinstance(end, (list, tuple))
                else (end,),
            )
        except KeyError as error:
            raise UserError(f'config.json lacks the field {error}.') from None

    def to_hf(self, dtype: str = 'float32') -> dict[str, Any]:
        """Dictionary of config.json, in the nested form that transformers 5 writes and reads."""
        text, vision = self.language, self.vision
        return {
            'architectures': ['Qwen2_5_VLForConditionalGeneration'],
            'model_type': MODEL_TYPE,
            'dtype': dtype,
            'tie_word_embeddings': text.tied_head,
            'image_token_id': self.image_token,
            'video_token_id': self.video_token,
            'vision_start_token_id': self.vision_start_token,
            'vision_end_token_id': self.vision_end_token,
            'eos_token_id': list(self.end_tokens) or None,
            'text_config': {
                'model_type': 'qwen2_5_vl_text',
                'num_hidden_layers': text.layers,
                'hidden_size': text.width,
                'intermediate_size': text.mlp_width,
                'num_attention_heads': text.heads,
                'num_key_value_heads': text.kv_heads,
                'vocab_size': text.vocabulary,
                'hidden_act': 'silu',
                'rms_norm_eps': text.norm_epsilon,
                'max_position_embeddings': text.max_positions,
                'use_sliding_window': False,
                'bos_token_id': None,
                'eos_token_id': list(self.end_tokens) or None,
                'rope_parameters': {
                    'rope_type': 'default',
                    'rope_theta': text.rope_theta,
                    'mrope_section': list(text.mrope_sections),
                },
            },
            'vision_config': {
                'model_type': 'qwen2_5_vl_vision',
                'depth': vision.depth,
                'hidden_size': vision.width,
                'intermediate_size': vision.mlp_width,
                'num_heads': vision.heads,
                'out_hidden_size': vision.out_width,
                'hidden_act': 'silu',
                'patch_size': vision.patch_size,
                'temporal_patch_size': vision.temporal_patch_size,
                'spatial_merge_size': vision.merge_size,
                'window_size': vision.window_size,
                'in_channels': vision.channels,
                'fullatt_block_indexes': list(vision.full_attention_blocks),
                'rope_parameters': {'rope_type': 'axial', 'rope_theta': vision.rope_theta},
            },
        }

    @classmethod
    def from_directory(cls, folder: str | Path) -> PolicySizes:
        """Sizes from the config.json of a policy directory.

        Raises:
            UserError: there is no such file, it is not JSON, or as `from_hf`.
        """
        path = Path(folder) / 'config.json'
        if not path.is_file():
            raise UserError(f'{folder} is not a policy directory: it has no config.json.')
        try:
            config = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f'{path} is not valid JSON: {error}.') from None
        try:
            return cls.from_hf(config)
        except UserError as error:
            raise UserError(f'{path}: {error}') from None


def _released(language: LanguageSizes, vision_mlp_width: int) -> PolicySizes:
    vision = VisionSizes(
        depth=32, width=1280, mlp_width=vision_mlp_width, heads=16, out_width=language.width
    )
    return PolicySizes(
        vision,
        language,
        image_token=151_655,
        vision_start_token=151_652,
        vision_end_token=151_653,
        video_token=151_656,
        end_tokens=(151_645, 151_643),
    )


# Sizes of the released checkpoints (arXiv 2502.13923, table 1), for plans that are made without one.
RELEASED = {
    '3B': _released(LanguageSizes(36, 2048, 11_008, 16, 2, 151_936, tied_head=True), 3420),
    '7B': _released(LanguageSizes(28, 3584, 18_944, 28, 4, 152_064), 3420),
    '32B': _released(LanguageSizes(64, 5120, 27_648, 40, 8, 152_064), 3456),
    '72B': _released(LanguageSizes(80, 8192, 29_568, 64, 8, 152_064), 3456),
}
