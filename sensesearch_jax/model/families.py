"""Families of policies, as data: the fields of their config.json, the names in their files, and the
form of their sizes.

Facts: the configuration classes of transformers 5.24 and 4.57 and the released config.json files
(Qwen2.5-VL, arXiv 2502.13923; Qwen3-VL, arXiv 2511.21631).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.sizes import LanguageSizes, VisionSizes

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: in config.json.
        architecture: name of the class in transformers.
        tower_act: hidden_act of the tower.
        nested_names: tensors of released files are named as the modules of transformers 5.
        colour: mean and standard deviation of the pictures' colours; None for CLIP's.
        vision_fields, language_fields: of `VisionSizes` and `LanguageSizes`, those that this family
            alone reads, from vision_config, and from text_config with the rotary settings.
        vision_config, text_config: the same fields of config.json, from the sizes.
        adapt: sizes of another family in the form of this one, of about the same cost.
    """

    model_type: str
    architecture: str
    tower_act: str
    nested_names: bool
    colour: float | None
    vision_fields: Callable[[Fields], Fields]
    language_fields: Callable[[Fields, Fields], Fields]
    vision_config: Callable[[VisionSizes], Fields]
    text_config: Callable[[LanguageSizes], Fields]
    adapt: Callable[[VisionSizes, LanguageSizes], tuple[VisionSizes, LanguageSizes]]

    def read(self, config: Fields) -> tuple[VisionSizes, LanguageSizes]:
        """Sizes of both parts from config.json, in the flat (released) or nested form.

        Raises:
            UserError: an option that is not supported.
            KeyError: a missing field.
        """
        text, vision = {**config, **config.get('text_config', {})}, config.get('vision_config')
        if vision is None:
            raise UserError('config.json has no vision_config.')
        if text.get('use_sliding_window'):
            raise UserError(
                'Sliding-window decoders are not supported; set use_sliding_window to false.'
            )
        for name, act, known in (
            ('decoder', text.get('hidden_act', 'silu'), 'silu'),
            ('tower', vision.get('hidden_act', self.tower_act), self.tower_act),
        ):
            if act != known:
                raise UserError(f"The {name}'s hidden_act is '{act}'; only '{known}' is supported.")
        rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
        kind = rope.get('rope_type', rope.get('type', 'default'))
        if kind not in ('default', 'mrope'):
            raise UserError(f"Rotary scaling of type '{kind}' is not supported.")
        rope = {k: text[k] for k in ('rope_theta',) if k in text} | rope
        # The decoder's own entry may be a default that nobody set.
        tied = config.get('tie_word_embeddings', text.get('tie_word_embeddings'))
        return VisionSizes(
            depth=vision['depth'],
            width=vision['hidden_size'],
            mlp_width=vision['intermediate_size'],
            heads=vision['num_heads'],
            out_width=vision['out_hidden_size'],
            temporal_patch_size=vision.get('temporal_patch_size', 2),
            merge_size=vision.get('spatial_merge_size', 2),
            channels=vision.get('in_channels', vision.get('in_chans', 3)),
            rope_theta=float((vision.get('rope_parameters') or {}).get('rope_theta', 10_000.0)),
            **self.vision_fields(vision),
        ), LanguageSizes(
            layers=text['num_hidden_layers'],
            width=text['hidden_size'],
            heads=text['num_attention_heads'],
            kv_heads=text.get('num_key_value_heads') or text['num_attention_heads'],
            vocabulary=text['vocab_size'],
            tied_head=bool(tied),
            max_positions=text.get('max_position_embeddings', 128_000),
            **self.language_fields(text, rope),
        )

    def written(self, vision: VisionSizes, text: LanguageSizes) -> Fields:
        """text_config and vision_config, in the form that transformers 5 writes and reads."""
        return {
            'text_config': {
                'model_type': f'{self.model_type}_text',
                'num_hidden_layers': text.layers,
                'hidden_size': text.width,
                'intermediate_size': text.mlp_width,
                'num_attention_heads': text.heads,
                'num_key_value_heads': text.kv_heads,
                'vocab_size': text.vocabulary,
                'hidden_act': 'silu',
                'rms_norm_eps': text.norm_epsilon,
                'max_position_embeddings': text.max_positions,
                **self.text_config(text),
                'bos_token_id': None,
                'rope_parameters': {
                    'rope_type': 'default',
                    'rope_theta': text.rope_theta,
                    'mrope_section': list(text.mrope_sections),
                    **({'mrope_interleaved': True} if text.interleaved else {}),
                },
            },
            'vision_config': {
                'model_type': f'{self.model_type}_vision',
                'depth': vision.depth,
                'hidden_size': vision.width,
                'intermediate_size': vision.mlp_width,
                'num_heads': vision.heads,
                'out_hidden_size': vision.out_width,
                'hidden_act': self.tower_act,
                'patch_size': vision.patch_size,
                'temporal_patch_size': vision.temporal_patch_size,
                'spatial_merge_size': vision.merge_size,
                'in_channels': vision.channels,
                'rope_parameters': {'rope_type': 'axial', 'rope_theta': vision.rope_theta},
                **self.vision_config(vision),
            },
        }

    def preprocessor(self, vision: VisionSizes) -> Fields:
        """preprocessor_config.json of a new policy, without the budget of pixels."""
        colour = {} if self.colour is None else {'image_mean': [self.colour] * 3}
        colour |= {} if self.colour is None else {'image_std': [self.colour] * 3}
        return {
            'image_processor_type': 'Qwen2VLImageProcessor',
            'patch_size': vision.patch_size,
            'temporal_patch_size': vision.temporal_patch_size,
            'merge_size': vision.merge_size,
            **colour,
        }

    def released_name(self, name: str) -> str:
        """Tensor's name in released files, given that in the modules of transformers 5; inverse of
        `module_name`.
        """
        if self.nested_names:
            return name
        if name.startswith('model.visual.'):
            return name.removeprefix('model.')
        return name.replace('model.language_model.', 'model.', 1)


def module_name(name: str) -> str:
    """Tensor's name in the modules of transformers 5, given that or its name in a released file."""
    if name.startswith('visual.'):
        return f'model.{name}'
    if name.startswith('model.') and not name.startswith(
        ('model.visual.', 'model.language_model.')
    ):
        return f'model.language_model.{name.removeprefix("model.")}'
    return name


def _windowed_vision(vision: Fields) -> Fields:
    return {
        'patch_size': vision.get('patch_size', vision.get('spatial_patch_size', 14)),
        'window_size': vision.get('window_size', 112),
        'full_attention_blocks': tuple(vision.get('fullatt_block_indexes', (7, 15, 23, 31))),
    }


def _biased_language(text: Fields, rope: Fields) -> Fields:
    return {
        'mlp_width': text['intermediate_size'],
        'norm_epsilon': text.get('rms_norm_eps', 1e-5),
        'rope_theta': float(rope.get('rope_theta', 1_000_000.0)),
        'mrope_sections': tuple(rope.get('mrope_section', (16, 24, 24))),
    }


def full_attention(patch_size: int, merge_size: int, depth: int) -> Fields:
    """Fields of `VisionSizes` of a tower whose blocks all attend fully, in reading order: a window is
    one merged token.

    Args:
        patch_size: pixels along the side of a patch.
        merge_size: patches along the side of a merged token.
        depth: number of blocks.
    """
    return {
        'patch_size': patch_size,
        'window_size': patch_size * merge_size,
        'full_attention_blocks': tuple(range(depth)),
        'layer_norm': True,
    }


def _deepstack_vision(vision: Fields) -> Fields:
    side = math.isqrt(vision['num_position_embeddings'])
    if side**2 != vision['num_position_embeddings']:
        raise UserError(
            f'num_position_embeddings {vision["num_position_embeddings"]} is no square.'
        )
    patch, merge = vision.get('patch_size', 16), vision.get('spatial_merge_size', 2)
    return full_attention(patch, merge, vision['depth']) | {
        'position_side': side,
        'deepstack_blocks': tuple(vision['deepstack_visual_indexes']),
    }


def _normed_language(text: Fields, rope: Fields) -> Fields:
    if 'rope_theta' not in rope:
        raise UserError(
            'config.json gives no rope_theta, whose default differs between releases of transformers; '
            'write the one that the policy was trained with into text_config.'
        )
    if text.get('attention_bias'):
        raise UserError('attention_bias is true; only false is supported in this family.')
    return {
        'mlp_width': text['intermediate_size'],
        'norm_epsilon': text.get('rms_norm_eps', 1e-6),
        'rope_theta': float(rope['rope_theta']),
        'mrope_sections': tuple(rope.get('mrope_section', (24, 20, 20))),
        'head_size': text['head_dim'],
        'query_norm': True,
        'interleaved': True,
    }


def _sparse_language(text: Fields, rope: Fields) -> Fields:
    if text.get('mlp_only_layers') or text.get('decoder_sparse_step', 1) != 1:
        raise UserError(
            'mlp_only_layers and decoder_sparse_step: only all layers may have experts.'
        )
    experts = text['num_experts'] if 'num_experts' in text else text['num_local_experts']
    return _normed_language(text, rope) | {
        'mlp_width': text['moe_intermediate_size'],
        'experts': experts,
        'experts_used': text['num_experts_per_tok'],
    }


def _deepstack_config(vision: VisionSizes) -> Fields:
    return {
        'num_position_embeddings': vision.position_side**2,
        'deepstack_visual_indexes': list(vision.deepstack_blocks),
    }


def _normed_config(text: LanguageSizes) -> Fields:
    return {'head_dim': text.head_width, 'attention_bias': False}


def _sparse_config(text: LanguageSizes) -> Fields:
    return _normed_config(text) | {
        'moe_intermediate_size': text.mlp_width,
        'num_experts': text.experts,
        'num_experts_per_tok': text.experts_used,
        'decoder_sparse_step': 1,
        'mlp_only_layers': [],
    }


def _deepstack_form(vision: VisionSizes, text: LanguageSizes):
    blocks = sorted({vision.depth * k // 4 for k in (1, 2, 3)})[: text.layers]
    full = full_attention(16, vision.merge_size, vision.depth)
    return dataclasses.replace(
        vision, **full, position_side=16, deepstack_blocks=tuple(blocks)
    ), dataclasses.replace(text, head_size=text.head_width, query_norm=True, interleaved=True)


def _sparse_form(vision: VisionSizes, text: LanguageSizes):
    vision, text = _deepstack_form(vision, text)
    width = text.mlp_width // 2
    # Files would not tell which way round the matrices of such experts are.
    width += 8 * (text.width in (width, 2 * width))
    return vision, dataclasses.replace(text, experts=4, experts_used=2, mlp_width=width)


_QWEN3 = {
    'tower_act': 'gelu_pytorch_tanh',
    'nested_names': True,
    'colour': 0.5,
    'vision_fields': _deepstack_vision,
    'vision_config': _deepstack_config,
}
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            'qwen2_5_vl',
            'Qwen2_5_VLForConditionalGeneration',
            tower_act='silu',
            nested_names=False,
            colour=None,
            vision_fields=_windowed_vision,
            language_fields=_biased_language,
            vision_config=lambda vision: {
                'window_size': vision.window_size,
                'fullatt_block_indexes': list(vision.full_attention_blocks),
            },
            text_config=lambda text: {'use_sliding_window': False},
            adapt=lambda vision, text: (vision, text),
        ),
        Family(
            'qwen3_vl',
            'Qwen3VLForConditionalGeneration',
            **_QWEN3,
            language_fields=_normed_language,
            text_config=_normed_config,
            adapt=_deepstack_form,
        ),
        Family(
            'qwen3_vl_moe',
            'Qwen3VLMoeForConditionalGeneration',
            **_QWEN3,
            language_fields=_sparse_language,
            text_config=_sparse_config,
            adapt=_sparse_form,
        ),
    )
}


def family_of(model_type: str) -> Family:
    """Family of a model type.

    Raises:
        UserError: there is none.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"'{model_type}' is no family of policies that is known; choose from "
            f'{", ".join(FAMILIES)}.'
        )
    return FAMILIES[model_type]
