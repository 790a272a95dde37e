"""Sizes of the two parts of a policy, with the switches in which families of policies differ."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class VisionSizes:
    """Sizes of the vision tower.

    Attributes:
        window_size: side of an attention window in pixels; that of one merged token where every
            block attends fully.
        full_attention_blocks: indices of the blocks without windows.
        layer_norm: LayerNorm and MLPs of two layers, in the place of RMSNorm and SwiGLU.
        position_side: of the square table of learned positions; 0 for none.
        deepstack_blocks: blocks whose outputs are merged as well, and added after the decoder's
            first layers.
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
    layer_norm: bool = False
    position_side: int = 0
    deepstack_blocks: tuple[int, ...] = ()

    @property
    def feature_width(self) -> int:
        """Width of a visual token's features: its own, and beside them those of deepstack."""
        return self.out_width * (1 + len(self.deepstack_blocks))

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

    Attributes:
        mlp_width: of a feed-forward layer, or of each of its experts.
        mrope_sections: numbers of rotary frequencies of time, row and column; their sum is half the
            head width.
        head_size: width of one attention head; None for the width divided by the heads.
        query_norm: RMSNorm of each head's queries and keys, in the place of biases.
        interleaved: the rotary frequencies of time, row and column alternate.
        experts: of each feed-forward layer; 0 for a dense one.
        experts_used: by each token.
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
    head_size: int | None = None
    query_norm: bool = False
    interleaved: bool = False
    experts: int = 0
    experts_used: int = 0

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.width // self.heads
