"""Vision-language policy: vision tower, text decoder and head (arXiv 2502.13923, 2511.21631)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.text_decoder import Embedded, LanguageModel
from sensesearch_jax.model.vision_tower import VisionTower
from sensesearch_jax.runtime.mesh import constrain


class Policy(nnx.Module):
    """Vision-language policy: vision tower, text decoder and head."""

    def __init__(self, sizes: PolicySizes, rngs: nnx.Rngs):
        self.sizes = sizes
        self.vision = VisionTower(sizes.vision, rngs)
        self.language = LanguageModel(sizes.language, rngs)

    @jax.named_scope('embed')
    def embed(
        self,
        tokens: Int[Array, 'b *n s'],
        features: Float[Array, 'b f w'] | None = None,
        feature_index: Int[Array, 'b *n s'] | None = None,
    ) -> Embedded:
        """Token embeddings, with visual features in place of image tokens.

        Args:
            tokens: token ids.
            features: feature table of each row: the merged visual tokens of its images, one after
                another, as the tower gives them; None for text alone, or of width 1 where no row
                has an image.
            feature_index: place in its row's table for each token, negative for text.

        Raises:
            ValueError: features of another policy's width.
        """
        # The table is replicated along its width for the lookup: the tokens are sharded over the
        # same devices.
        table = constrain(self.language.embedding[...], ('vocabulary', None))
        between = [None] * (tokens.ndim - 2)
        text = constrain(table[tokens], ('rows', *between, 'sequence', None))
        if features is None or features.shape[-1] == 1:
            return Embedded(text, None)
        if features.shape[-1] != (width := self.sizes.vision.feature_width):
            raise ValueError(
                f'Features of width {features.shape[-1]} where the tower gives {width}.'
            )
        is_visual = (feature_index >= 0)[..., None]

        def visual(features, elsewhere):
            found = jax.vmap(lambda rows, index: rows[index])(
                features, jnp.maximum(feature_index, 0)
            ).astype(text.dtype)
            return jnp.where(is_visual, found, elsewhere)

        own, *deepstack = jnp.split(features, features.shape[-1] // text.shape[-1], axis=-1)
        # Each is as large as a layer's input, which it is added to, and sharded like it.
        axes = 'rows', *between, 'tokens', None
        added = [constrain(visual(f, 0), axes) for f in deepstack]
        return Embedded(visual(own, text), jnp.stack(added) if added else None)

    @jax.named_scope('head')
    def logits(self, hidden: Float[Array, '*n d']) -> Float[Array, '*n v']:
        """Logits over the vocabulary, in float32."""
        return jnp.einsum(
            '...d,vd->...v',
            hidden,
            self.language.head.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
