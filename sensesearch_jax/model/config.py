"""Sizes of a policy, read from and written to a Hugging Face config.json, and those that were
released.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.families import FAMILIES, Family, family_of, full_attention
from sensesearch_jax.model.sizes import LanguageSizes, VisionSizes


@dataclasses.dataclass(frozen=True)
class PolicySizes:
    """Sizes of a policy: of its two parts, the ids of its special tokens, and the model type of its
    family, see families.py.
    """

    vision: VisionSizes
    language: LanguageSizes
    image_token: int
    vision_start_token: int
    vision_end_token: int
    video_token: int
    end_tokens: tuple[int, ...] = ()
    model_type: str = 'qwen2_5_vl'

    def __post_init__(self):
        text, vision = self.language, self.vision
        if text.heads % text.kv_heads or (text.head_size is None and text.width % text.heads):
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
        deep = vision.deepstack_blocks
        if len(deep) > text.layers or not set(deep) <= set(range(vision.depth)):
            raise UserError(
                f'deepstack_visual_indexes {list(deep)} must name blocks of {vision.depth}, at most '
                f"as many as the decoder's {text.layers} layers."
            )
        if text.experts and text.width in (text.mlp_width, 2 * text.mlp_width):
            raise UserError(
                f'Experts of moe_intermediate_size {text.mlp_width} are not supported at hidden_size '
                f'{text.width}: their files do not tell which way round the matrices are.'
            )
        if text.experts_used > text.experts:
            raise UserError(
                f'num_experts_per_tok {text.experts_used} exceeds the {text.experts} experts.'
            )

    @property
    def family(self) -> Family:
        """Family of the policy."""
        return FAMILIES[self.model_type]

    def adapted(self, model_type: str) -> PolicySizes:
        """Sizes of a policy in the form of a family, about as large as these."""
        vision, language = family_of(model_type).adapt(self.vision, self.language)
        return dataclasses.replace(self, vision=vision, language=language, model_type=model_type)

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> PolicySizes:
        """Sizes from the dictionary of a config.json, in the flat (released) or nested
        (transformers 5) form.

        Raises:
            UserError: another model type, a missing field, or an option that is not supported.
        """
        family = family_of(config.get('model_type'))
        end = config.get('text_config', {}).get('eos_token_id', config.get('eos_token_id'))
        try:
            vision, language = family.read(config)
        except KeyError as error:
            raise UserError(f'config.json lacks the field {error}.') from None
        return cls(
            vision,
            language,
            image_token=config.get('image_token_id', 151_655),
            vision_start_token=config.get('vision_start_token_id', 151_652),
            vision_end_token=config.get('vision_end_token_id', 151_653),
            video_token=config.get('video_token_id', 151_656),
            end_tokens=()
            if end is None
            else tuple(end)
            if isinstance(end, (list, tuple))
            else (end,),
            model_type=family.model_type,
        )

    def to_hf(self, dtype: str = 'float32') -> dict[str, Any]:
        """Dictionary of config.json, in the nested form that transformers 5 writes and reads."""
        parts = self.family.written(self.vision, self.language)
        ends = list(self.end_tokens) or None
        parts['text_config']['eos_token_id'] = ends
        return {
            'architectures': [self.family.architecture],
            'model_type': self.model_type,
            'dtype': dtype,
            'tie_word_embeddings': self.language.tied_head,
            'image_token_id': self.image_token,
            'video_token_id': self.video_token,
            'vision_start_token_id': self.vision_start_token,
            'vision_end_token_id': self.vision_end_token,
            'eos_token_id': ends,
            **parts,
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


def _released(
    language: LanguageSizes, vision: VisionSizes, model_type: str = 'qwen2_5_vl'
) -> PolicySizes:
    return PolicySizes(
        dataclasses.replace(vision, out_width=language.width),
        language,
        image_token=151_655,
        vision_start_token=151_652,
        vision_end_token=151_653,
        video_token=151_656,
        end_tokens=(151_645, 151_643),
        model_type=model_type,
    )


def _qwen3(
    layers: int, width: int, mlp_width: int, heads: int, kv_heads: int, **more
) -> PolicySizes:
    """A released size of Qwen3-VL; those with a tied head have the smaller tower."""
    text = LanguageSizes(
        layers,
        width,
        mlp_width,
        heads,
        kv_heads,
        151_936,
        rope_theta=5e6,
        mrope_sections=(24, 20, 20),
        max_positions=262_144,
        head_size=128,
        query_norm=True,
        interleaved=True,
        **more,
    )
    depth, tower_width, tower_mlp, deep = (
        (24, 1024, 4096, (5, 11, 17)) if text.tied_head else (27, 1152, 4304, (8, 16, 24))
    )
    vision = VisionSizes(
        depth,
        tower_width,
        tower_mlp,
        heads=16,
        out_width=width,
        position_side=48,
        deepstack_blocks=deep,
        **full_attention(16, 2, depth),
    )
    return _released(text, vision, 'qwen3_vl_moe' if text.experts else 'qwen3_vl')


_TOWER, _WIDER_TOWER = (VisionSizes(32, 1280, mlp, 16, out_width=0) for mlp in (3420, 3456))
# Sizes of the released checkpoints (arXiv 2502.13923, table 1; config.json files of Qwen3-VL), for
# plans that are made without one.
RELEASED = {
    '3B': _released(LanguageSizes(36, 2048, 11_008, 16, 2, 151_936, tied_head=True), _TOWER),
    '7B': _released(LanguageSizes(28, 3584, 18_944, 28, 4, 152_064), _TOWER),
    '32B': _released(LanguageSizes(64, 5120, 27_648, 40, 8, 152_064), _WIDER_TOWER),
    '72B': _released(LanguageSizes(80, 8192, 29_568, 64, 8, 152_064), _WIDER_TOWER),
    'Qwen3-VL-2B': _qwen3(28, 2048, 6144, 16, 8, tied_head=True),
    'Qwen3-VL-4B': _qwen3(36, 2560, 9728, 32, 8, tied_head=True),
    'Qwen3-VL-8B': _qwen3(36, 4096, 12_288, 32, 8),
    'Qwen3-VL-32B': _qwen3(64, 5120, 25_600, 64, 8),
    'Qwen3-VL-30B-A3B': _qwen3(48, 2048, 768, 32, 4, experts=128, experts_used=8),
    'Qwen3-VL-235B-A22B': _qwen3(94, 4096, 1536, 64, 4, experts=128, experts_used=8),
}
