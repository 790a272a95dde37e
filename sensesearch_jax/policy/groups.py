"""The forward pass over rows of groups: the prompt once, every member's suffix attending to it and to itself."""

from __future__ import annotations

from jaxtyping import Array, Float

from sensesearch_jax.inputs.groups import GroupBatch
from sensesearch_jax.policy.attention import Context
from sensesearch_jax.policy.language import KeysValues
from sensesearch_jax.policy.qwen import Policy


def group_hidden(policy: Policy, batch: GroupBatch, *,
                 remat: str = 'none') -> tuple[Float[Array, 'b g s d'], KeysValues]:
    """Hidden states of all suffix tokens, equal to those of G separate full sequences.

    The state at suffix token s predicts token s + 1 (the prompt's last token is suffix token 0).

    Returns:
        hidden states of the suffixes, and the keys and values of the prompts (group axis 1).
    """
    prompt = policy.embed(batch.prompt, batch.features, batch.prompt_features)[:, None]
    valid = batch.prompt_valid[:, None]
    _, cache = policy.language(prompt, batch.prompt_positions[:, :, None], valid, remat=remat)
    suffix = policy.embed(batch.tokens, batch.features, batch.feature_index)
    hidden, _ = policy.language(suffix, batch.positions, batch.valid,
                                (Context.of(cache.keys, cache.values, valid),), remat=remat)
    return hidden, cache
