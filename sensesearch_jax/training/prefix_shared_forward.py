"""The forward pass over rows of groups: the prompt once, every member's suffix attending to it and
to itself.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.packing import packed, unpacked
from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.text_decoder import KeysValues


def group_hidden(
    policy: Policy,
    batch: GroupBatch,
    *,
    remat: str = 'none',
    perturbations: nnx.State | None = None,
) -> tuple[Float[Array, 'b g s d'], KeysValues]:
    """Hidden states of all suffix tokens, equal to those of G separate full sequences.

    The state at suffix token s predicts token s + 1 (the prompt's last token is suffix token 0).
    Prompt and suffixes go through the layers as one run of tokens, so that each matrix is read once
    and has one gradient; attention alone tells them apart.

    Args:
        policy: with all parameters.
        batch: B rows of a prompt and G suffixes.
        remat: as for `LanguageModel.run`.
        perturbations: as for `LanguageModel.run`.

    Returns:
        hidden states of the suffixes, of a packed batch as one run per row [B, 1, N, D], and the
        keys and values of the prompts (group axis 1).
    """
    packing, (rows, start) = batch.packing, batch.prompt.shape

    def one_run(prompt, suffixes):
        return jnp.concatenate([prompt, packed(suffixes, packing).reshape(rows, -1)], 1)[:, None]

    # spare places of a packed run stay text
    places = one_run(batch.prompt_features + 1, batch.feature_index + 1) - 1
    embedded = policy.embed(one_run(batch.prompt, batch.tokens), batch.features, places)
    positions = jnp.stack([*map(one_run, batch.prompt_positions, batch.positions)])
    prompt_valid, lanes = batch.prompt_valid[:, None], batch.valid.shape[1:]
    members = (1, -1) if packing else lanes

    def attention(*qkv, of_layer):
        def split(z):
            return (z[:, :, :start], z[:, :, start:].reshape(rows, *members, *z.shape[3:]))

        prompts, suffixes = zip(*map(split, qkv))
        of_prompt = attend(*prompts, prompt_valid)
        of_suffixes = attend(
            *(unpacked(z, packing, lanes) for z in suffixes),
            batch.valid,
            (KVCache.of(*prompts[1:], prompt_valid),),
        )
        of_suffixes = packed(of_suffixes, packing).reshape(rows, 1, -1, *of_prompt.shape[3:])
        return jnp.concatenate([of_prompt, of_suffixes], 2)

    hidden, cache = policy.language.run(
        embedded, positions, attention, remat=remat, perturbations=perturbations
    )

    def of_prompt(z):
        return z[:, :, :, :start]

    return hidden[:, :, start:].reshape(rows, *members, hidden.shape[-1]), KeysValues(
        *map(of_prompt, cache)
    )
