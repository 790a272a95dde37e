"""Qwen2.5-VL as one policy: tower, decoder and head (arXiv 2502.13923)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sensesearch_jax.policy.language import LanguageModel
from sensesearch_jax.policy.sizes import PolicySizes
from sensesearch_jax.policy.vision import VisionTower


class Policy(nnx.Module):
    """The whole vision-language policy; `sizes` says how large."""

    def __init__(self, sizes: PolicySizes, rngs: nnx.Rngs):
        self.sizes = sizes
        self.vision = VisionTower(sizes.vision, rngs)
        self.language = LanguageModel(sizes.language, rngs)

    def embed(self, tokens: Int[Array, '*n s'], features: Float[Array, 'f d'],
              feature_index: Int[Array, '*n s']) -> Float[Array, '*n s d']:
        """Token embeddings, with visual features where a token stands for a piece of an image.

        Args:
            features: a table of merged visual tokens, of any images, one after another.
            feature_index: row of the table for each token, negative for text.
        """
        text = self.language.embedding[...][tokens]
        visual = features[jnp.maximum(feature_index, 0)].astype(text.dtype)
        return jnp.where((feature_index >= 0)[..., None], visual, text)

    def logits(self, hidden: Float[Array, '*n d']) -> Float[Array, '*n v']:
        """Logits over the vocabulary, in float32."""
        return jnp.einsum('...d,vd->...v', hidden, self.language.head.astype(hidden.dtype),
                          preferred_element_type=jnp.float32)
