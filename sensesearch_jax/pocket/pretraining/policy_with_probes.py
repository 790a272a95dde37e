"""The base policy's loss: cross-entropy of answers and pages, and that of the probes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.packing import packed, unpacked
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.pocket.pretraining.curriculum import Batch
from sensesearch_jax.pocket.pretraining.probes import Probes
from sensesearch_jax.training.prefix_shared_forward import group_hidden
from sensesearch_jax.training.token_log_probs import token_log_probs

PAGE_WEIGHT = 0.3  # of predicting the page itself, where most of a text's repetitions are


class PolicyWithProbes(nnx.Module):
    """The policy and the probes that are dropped after training.

    Args:
        policy: to train.
        layers: of the decoder, whose values are probed.
        seed: of the probes' first parameters.
    """

    def __init__(self, policy: Policy, layers: tuple[int, ...], seed: int):
        text = policy.sizes.language
        self.policy, self.layers = policy, layers
        self.probes = nnx.List(
            [
                Probes(text.kv_heads * text.head_width, 24, 24, nnx.Rngs(seed + layer))
                for layer in layers
            ]
        )

    def loss(
        self, batch: Batch, probe_weight: float, freeze_tower: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the answers, the probes' loss on pictures, some of the page's own.

        Args:
            batch: of one lesson.
            probe_weight: of the probes' loss.
            freeze_tower: whether the vision tower gets no gradient.
        """
        groups = batch.groups
        if batch.images is not None:
            features = self._features(batch)
            if freeze_tower:
                features = jax.lax.stop_gradient(features)
            groups = groups._replace(features=features)
        hidden, prompt = group_hidden(self.policy, groups)
        learned = groups.response_mask if batch.images is not None else groups.valid
        found, _ = token_log_probs(
            hidden,
            self.policy.language.head,
            _following(groups, groups.tokens),
            wanted=_following(groups, learned),
        )
        log_probs = unpacked(found, groups.packing, groups.valid.shape[1:])[:, :, :-1]

        def mean(mask):
            return -jnp.where(mask, log_probs, 0).sum() / jnp.maximum(mask.sum(), 1)

        response = groups.response_mask[:, :, 1:]
        loss = mean(response)
        if batch.images is None:
            page = mean(groups.valid[:, :, 1:] & ~response)
            return loss + PAGE_WEIGHT * page, {'reading_loss': loss, 'page_loss': page}
        parts, total = {'seeing_loss': loss}, loss
        for layer, probe in zip(self.layers, self.probes):
            extra, found = probe(
                prompt.values[layer][:, 0].reshape(*groups.prompt.shape, -1), batch.targets
            )
            total += probe_weight * extra
            parts |= {f'{name}_{layer}': value for name, value in found.items()}
        return total, parts

    def _features(self, batch: Batch) -> jax.Array:
        """Every row's table: the tower's output of its pictures, one after another."""
        features = self.policy.vision(*batch.images)
        return features.reshape(len(batch.groups.prompt), -1, features.shape[-1])

    def correct(self, batch: Batch) -> jax.Array:
        """Whether each of the tokens 1 … S−1 is the most likely one after those before, [B, G, S−1]."""
        groups = batch.groups
        if batch.images is not None:
            groups = groups._replace(features=self._features(batch))
        hidden, _ = group_hidden(self.policy, groups)
        # A row's logits at a time: all of them would take gigabytes.
        best = jax.lax.map(lambda row: self.policy.logits(row).argmax(-1), hidden)
        right = best == _following(groups, groups.tokens)
        return unpacked(right, groups.packing, groups.valid.shape[1:])[:, :, :-1]


def _following(groups: GroupBatch, of_tokens: jax.Array) -> jax.Array:
    """Of each of the suffixes' tokens something about the next one, packed as they are."""
    following = jnp.pad(of_tokens[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    return packed(following, groups.packing)
