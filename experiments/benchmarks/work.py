"""What the mathematics of a policy's passes asks for, counted by hand."""

from __future__ import annotations

from typing import NamedTuple

from sensesearch_jax.model.config import PolicySizes, VisionSizes


class Lengths(NamedTuple):
    """Tokens of a row: its prompt, the visual ones among them, and each trajectory after it."""

    prompt: int
    visual: int
    suffix: int


def decoder_matrices(sizes: PolicySizes) -> int:
    """Numbers in the matrices of all layers: each is one multiplication and one addition per token."""
    text = sizes.language
    return (
        text.layers
        * text.width
        * (2 * text.width + 2 * text.kv_heads * text.head_width + 3 * text.mlp_width)
    )


def forward_flops(sizes: PolicySizes, rows: int, members: int, lengths: Lengths) -> float:
    """FLOPs of a forward pass over groups; of causal attention only the half that is not masked,
    the head on suffixes.
    """
    text, p, s = sizes.language, lengths.prompt, lengths.suffix
    pairs = p * p / 2 + members * (s * p + s * s / 2)
    return rows * (
        2 * decoder_matrices(sizes) * (p + members * s)
        + 2 * text.vocabulary * text.width * members * s
        + 4 * text.layers * text.width * pairs
    )


def tower_flops(vision: VisionSizes, patches: int) -> float:
    """FLOPs of the tower on one picture of so many patches, which come in full windows."""
    matrices = vision.depth * vision.width * (4 * vision.width + 3 * vision.mlp_width)
    window = (vision.window_tokens * vision.merge_size) ** 2
    full = len(vision.full_attention_blocks)
    seen = full * patches + (vision.depth - full) * window
    merged = vision.width * vision.merge_size**2
    return patches * (
        2 * matrices + 4 * vision.width * seen + 2 * vision.patch_width * vision.width
    ) + (patches / vision.merge_size**2) * 2 * merged * (merged + vision.out_width)
