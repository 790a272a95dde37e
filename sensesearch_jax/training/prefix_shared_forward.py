"""The forward pass over rows of groups: the prompt once, every member's suffix attending to it and
to itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.packing import packed, unpacked
from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.text_decoder import KeysValues
from sensesearch_jax.runtime.mesh import constrain, sequence_shards


class Run(NamedTuple):
    """Prompt and suffixes of a row as one run of tokens for the layers.

    Each shard of the mesh's sequence axis has its part of the prompt and after it its part of the
    suffixes, so that both are sharded over that axis, and no token moves where attention takes them
    apart. (One after the other, the prompt would be on the first shards alone.)
    """

    prompt: int  # its length
    shards: int

    @classmethod
    def of(cls, prompt: int, suffixes: int) -> Run:
        """Run on the current mesh; as one part where its sequence axis does not divide both lengths."""
        shards = sequence_shards()
        return cls(prompt, 1 if prompt % shards or suffixes % shards else shards)

    def join(
        self, prompt: Shaped[Array, 'b 1 p *rest'], suffixes: Shaped[Array, 'b g s *rest']
    ) -> Shaped[Array, 'b 1 t *rest']:
        """The run."""
        return _flat(jnp.concatenate([self._parts(x) for x in (prompt, suffixes)], 2))

    def split(
        self, run: Shaped[Array, 'b 1 t *rest']
    ) -> tuple[Shaped[Array, 'b 1 p *rest'], Shaped[Array, 'b 1 s *rest']]:
        """Prompt and suffixes of the run."""
        parts, end = self._parts(run), self.prompt // self.shards
        return _flat(parts[:, :, :end]), _flat(parts[:, :, end:])

    def _parts(self, x):
        parts = x.reshape(len(x), self.shards, -1, *x.shape[3:])
        return parts if self.shards == 1 else constrain(parts, ('rows', 'sequence', None))


def _flat(parts):
    return parts.reshape(len(parts), 1, -1, *parts.shape[3:])


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
    prompt_valid, lanes = batch.prompt_valid[:, None], batch.valid.shape[1:]
    members = (1, packing.index.shape[1]) if packing else lanes
    run = Run.of(start, math.prod(members))

    def one_run(prompt, suffixes):
        return run.join(prompt[:, None], packed(suffixes, packing))

    # spare places of a packed run stay text
    places = one_run(batch.prompt_features + 1, batch.feature_index + 1) - 1
    embedded = policy.embed(one_run(batch.prompt, batch.tokens), batch.features, places)
    positions = jnp.stack([*map(one_run, batch.prompt_positions, batch.positions)])

    def split(z):
        prompts, suffixes = run.split(z)
        return prompts, suffixes.reshape(rows, *members, *z.shape[3:])

    def attention(*qkv, of_layer):
        prompts, suffixes = zip(*map(split, qkv))
        of_prompt = attend(*prompts, prompt_valid)
        of_suffixes = attend(
            *(unpacked(z, packing, lanes) for z in suffixes),
            batch.valid,
            (KVCache.of(*prompts[1:], prompt_valid),),
        )
        return run.join(of_prompt, packed(of_suffixes, packing))

    hidden, cache = policy.language.run(
        embedded, positions, attention, remat=remat, perturbations=perturbations
    )
    of_prompts = jax.vmap(lambda z: split(z)[0])
    return split(hidden)[1], KeysValues(*map(of_prompts, cache))
