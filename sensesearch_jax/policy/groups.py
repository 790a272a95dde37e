"""The forward pass over rows of groups: the prompt once, every member's suffix attending to it and to itself."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from sensesearch_jax.inputs.groups import GroupBatch
from sensesearch_jax.policy.context import Context
from sensesearch_jax.policy.language import KeysValues
from sensesearch_jax.policy.packing import packed
from sensesearch_jax.policy.qwen import Policy


def group_hidden(policy: Policy, batch: GroupBatch, *,
                 remat: str = 'none') -> tuple[Float[Array, 'b g s d'], KeysValues]:
    """Hidden states of all suffix tokens, equal to those of G separate full sequences.

    The state at suffix token s predicts token s + 1 (the prompt's last token is suffix token 0).

    Returns:
        hidden states of the suffixes, of a packed batch as one run per row [B, 1, N, D], and the keys and values of the
        prompts (group axis 1).
    """
    prompt = policy.embed(batch.prompt, batch.features, batch.prompt_features)[:, None]
    valid = batch.prompt_valid[:, None]
    _, cache = policy.language(prompt, batch.prompt_positions[:, :, None], valid, remat=remat)
    packing = batch.packing
    suffix = policy.embed(packed(batch.tokens, packing), batch.features, packed(batch.feature_index + 1, packing) - 1)
    positions = jnp.stack([packed(axis, packing) for axis in batch.positions])
    hidden, _ = policy.language(suffix, positions, batch.valid, (Context.of(cache.keys, cache.values, valid),),
                                remat=remat, packing=packing)
    return hidden, cache
