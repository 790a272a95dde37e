"""Vision-language policy: vision tower, text decoder and head (arXiv 2502.13923, 2511.21631)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.text_decoder import LanguageModel
from sensesearch_jax.model.vision_tower import VisionTower
from sensesearch_jax.runtime.mesh import constrain


class Policy(nnx.Module):
    """Vision-language policy: vision tower, text decoder and head."""

    def __init__(self, sizes: PolicySizes, rngs: nnx.Rngs):
        self.sizes = sizes
        self.vision = VisionTower(sizes.vision, rngs)
        self.language = LanguageModel(sizes.language, rngs)

    def embed(
        self,
        tokens: Int[Array, 'b *n s'],
        features: Float[Array, 'b f d'] | None = None,
        feature_index: Int[Array, 'b *n s'] | None = None,
    ) -> Float[Array, 'b *n s d']:
        """Token embeddings, with visual features in place of image tokens.

        Args:
            tokens: token ids.
            features: feature table of each row: the merged visual tokens of its images, one after
                another; None for text alone.
            feature_index: place in its row's table for each token, negative for text.
        """
        # The table is replicated along its width for the lookup: the tokens are sharded over the
        # same devices.
        table = constrain(self.language.embedding[...], ('vocabulary', None))
        text = constrain(table[tokens], ('rows', *[None] * tokens.ndim))
        if features is None:
            return text
        visual = jax.vmap(lambda rows, index: rows[index])(
            features, jnp.maximum(feature_index, 0)
        ).astype(text.dtype)
        return jnp.where((feature_index >= 0)[..., None], visual, text)

    def logits(self, hidden: Float[Array, '*n d']) -> Float[Array, '*n v']:
        """Logits over the vocabulary, in float32."""
        return jnp.einsum(
            '...d,vd->...v',
            hidden,
            self.language.head.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
