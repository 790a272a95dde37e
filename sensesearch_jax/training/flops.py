"""Model FLOPs of passes over groups, counted by hand from the decoder's geometry, and their share
of the devices' peak (MFU, model FLOPs utilization; Chowdhery et al., PaLM, 2022, appendix B).

They are the operations of the mathematics: padding and what remat computes again are not among
them, and of causal attention only the half that is not masked. The vision tower is frozen and not
in a training step.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.typing import ArrayLike

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.model.config import LanguageSizes, VisionSizes

# Published dense bfloat16 FLOP/s by the beginning of jax's device_kind, the longer name first. Google:
# cloud.google.com/tpu/docs (of TPU7x jax counts a chip as two devices); NVIDIA: data sheets of the cards.
PEAK_FLOPS = {
    'TPU v4 lite': 138e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,  # v5p
    'TPU v6': 918e12,
    'TPU7x': 2307e12 / 2,
    'NVIDIA A100': 312e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H100': 989e12,
    'NVIDIA H200': 989e12,
    'NVIDIA B200': 2250e12,
}
# Passes' worth of a backward pass: gradients of activations and of weights, and of frozen weights none.
BACKWARD, FROZEN = 2, 1


def decoder_matrices(text: LanguageSizes) -> int:
    """Numbers in the matrices that a token meets in all layers, each a multiplication and an addition:
    of experts those that it uses, and their router.
    """
    attention = 2 * text.width * text.head_width * (text.heads + text.kv_heads)
    mlp = 3 * text.width * text.mlp_width
    if text.experts:
        mlp = text.experts_used * mlp + text.width * text.experts
    return text.layers * (attention + mlp)


def forward_flops(text: LanguageSizes, prompts: ArrayLike, suffixes: ArrayLike) -> float:
    """FLOPs of a forward pass over groups, whose prompts are computed once; the head is on suffixes.

    Args:
        text: sizes of the decoder.
        prompts: [B], tokens of each group's prompt.
        suffixes: [B, G], tokens of each trajectory after it.
    """
    return sum(_forward_parts(text, prompts, suffixes))


def tower_flops(vision: VisionSizes, patches: int) -> float:
    """FLOPs of the tower on one picture of so many patches, which come in full windows."""
    of_mlp = 2 if vision.layer_norm else 3
    matrices = vision.depth * vision.width * (4 * vision.width + of_mlp * vision.mlp_width)
    window = (vision.window_tokens * vision.merge_size) ** 2
    full = len(vision.full_attention_blocks)
    seen = full * patches + (vision.depth - full) * window
    merged = vision.width * vision.merge_size**2
    return patches * (
        2 * matrices + 4 * vision.width * seen + 2 * vision.patch_width * vision.width
    ) + (patches / vision.merge_size**2) * 2 * merged * (merged + vision.out_width) * (
        1 + len(vision.deepstack_blocks)
    )


def step_flops(
    text: LanguageSizes,
    prompts: ArrayLike,
    suffixes: ArrayLike,
    reference: bool = False,
    adapters: bool = False,
) -> float:
    """FLOPs of a forward and backward pass over groups.

    Args:
        text: sizes of the decoder.
        prompts: as for `forward_flops`.
        suffixes: as for `forward_flops`.
        reference: whether the reference's forward pass is among them.
        adapters: whether these alone are trained; their own products, about a hundredth, are not
            counted.
    """
    matrices, attention = _forward_parts(text, prompts, suffixes)
    of_matrices = FROZEN if adapters else BACKWARD
    return (1 + of_matrices + reference) * matrices + (1 + BACKWARD + reference) * attention


def training_flops(
    text: LanguageSizes, batch: GroupBatch, reference: bool = False, adapters: bool = False
) -> float:
    """FLOPs of a micro-batch's forward and backward pass.

    Args:
        text: sizes of the decoder.
        batch: the micro-batch; its padding does not count.
        reference: as for `step_flops`.
        adapters: as for `step_flops`.
    """
    tokens = batch.prompt_valid.sum(-1), batch.valid.sum(-1)
    return step_flops(text, *tokens, reference, adapters)


def _forward_parts(
    text: LanguageSizes, prompts: ArrayLike, suffixes: ArrayLike
) -> tuple[float, float]:
    """FLOPs of products with matrices, and of attention."""
    p, s = np.asarray(prompts, float), np.asarray(suffixes, float)
    pairs = (p * p / 2).sum() + (s * p[:, None] + s * s / 2).sum()
    return float(
        2 * decoder_matrices(text) * (p.sum() + s.sum())
        + 2 * text.vocabulary * text.width * s.sum()
    ), float(4 * text.layers * text.heads * text.head_width * pairs)


def utilization(flops: float, seconds: float, devices: float) -> dict[str, float]:
    """`mfu`, the share of the devices' bfloat16 peak; nothing on a device whose peak is not known.

    Args:
        flops: model FLOPs that were run.
        seconds: that they took.
        devices: that they ran on, all of the kind of the first one here.
    """
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)
    return {} if peak is None else {'mfu': flops / (max(seconds, 1e-9) * devices * peak)}


def per_chip_hour(count: int, seconds: float, devices: float) -> float:
    """The rate of an hour of one device.

    Args:
        count: made by all devices together.
        seconds: that they took.
        devices: how many there are.
    """
    return 3600 * count / max(seconds, 1e-9) / devices
