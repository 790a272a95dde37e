"""The losses of a group batch: from trained parameters to SFT's and RL's loss, with their metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.packing import packed, unpacked
from sensesearch_jax.model.parameters import read
from sensesearch_jax.training.losses import PolicyOptions, cross_entropy, kl, policy_loss
from sensesearch_jax.training.policy_statistics import policy_maxima, policy_statistics
from sensesearch_jax.training.prefix_shared_forward import group_hidden
from sensesearch_jax.training.token_log_probs import token_log_probs

Metrics = dict[str, tuple[Array, Array]]  # (sum, weight) pairs; names in _max: (value, 1)
Weights = tuple[nnx.State, nnx.State]  # of the decoder: trained, not trained


class PolicyTargets(NamedTuple):
    """Advantages and mask of a batch; its old log-probs are the sampler's (`GroupBatch.log_probs`), but
    with importance weights.
    """

    advantages: Float[np.ndarray, 'b g']
    # False leaves a trajectory out (failed infrastructure, padding)
    in_loss: Bool[np.ndarray, 'b g']
    # of tokens 1 … S−1; None without a KL term
    ref_log_probs: Float[np.ndarray, 'b g s'] | None = None
    # likewise, the trainer's before the first update on a rollout batch, of importance weights; None
    # where that update is this one
    old_log_probs: Float[np.ndarray, 'b g s'] | None = None


class InLoss(NamedTuple):
    """Size of the minibatch that the policy loss is the mean of, in all processes."""

    trajectories: float  # with any response token
    tokens: float  # of responses


@dataclass(frozen=True)
class Objective(PolicyOptions):
    r"""Options of the policy loss and of its other terms; see `losses.policy_loss` and `losses.kl`.

    The loss is that of the policy, plus `kl_coefficient` times the KL term, less
    `entropy_coefficient` times the mean entropy of the distributions that response tokens are drawn
    from (the bonus of A3C, arXiv 1602.01783, section 4):

    .. math:: -\beta\, \frac{1}{\sum_i L_i} \sum_{i,t} m_{i,t} H_{i,t}
    """

    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0


@dataclass(frozen=True, eq=False)
class BatchLosses:
    """Losses of a micro-batch, to be differentiated by their first argument.

    Args:
        graph: of the policy, to be merged with the parameters.
        tower: parameters of the vision tower; no loss uses them.
        suppressed: [V], True for ids that the sampler cannot draw; None for no such id.
        temperature: that trajectories are sampled at.
        objective: the RL loss; None for SFT alone.
        remat: what a layer keeps for the backward pass, a name of `model.text_decoder.REMAT`.
        dtype: of the forward and backward pass.
    """

    graph: nnx.GraphDef
    tower: nnx.State
    suppressed: Bool[np.ndarray, ' v'] | None
    temperature: float
    objective: Objective | None
    remat: str
    dtype: np.dtype

    def perturbations(self, parameters: nnx.State) -> nnx.State:
        """Zeros in the loss's dtype that gradients are taken by; see `parameters.read`."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, self.dtype), parameters)

    def log_probs(
        self, perturbations: nnx.State, weights: Weights, batch: GroupBatch
    ) -> tuple[Float[Array, 'b g s'], Float[Array, 'b g s']]:
        """Log-probs of suffix tokens 1 … S−1, and entropies of the distributions they are taken from; of
        the response's alone, and 0 elsewhere.

        Args:
            perturbations: of the trained parameters, zeros.
            weights: trained parameters, and those of the decoder that are not trained.
            batch: B rows.

        Returns:
            (log_probs, entropy), in nats.
        """
        # Layers are read one by one as they are run, the embedding, the head and the last norm
        # here.
        parameters, kept = weights

        def apart(state):
            return nnx.split_state(state, lambda path, _: path[1] == 'layers', ...)

        (layers, rest), (of_layers, of_rest) = apart(parameters), apart(perturbations)
        policy = nnx.merge(self.graph, layers, jax.tree.map(read, rest, of_rest), kept, self.tower)
        hidden, _ = group_hidden(
            policy, batch, remat=self.remat, perturbations=of_layers['language']['layers']
        )
        following, wanted = (
            packed(jnp.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 1))), batch.packing)
            for x in (batch.tokens, batch.response_mask)
        )
        found = token_log_probs(
            hidden,
            policy.language.head,
            following,
            wanted=wanted,
            suppressed=self.suppressed,
            temperature=self.temperature,
        )
        return tuple(unpacked(x, batch.packing, batch.valid.shape[1:])[:, :, :-1] for x in found)

    def sft(
        self, perturbations: nnx.State, weights: Weights, batch: GroupBatch, tokens: float
    ) -> tuple[Float[Array, ''], Metrics]:
        """Cross-entropy of the response tokens.

        Args:
            perturbations: as for `log_probs`.
            weights: as for `log_probs`.
            batch: a micro-batch.
            tokens: response tokens of the minibatch, which the sum is divided by.

        Returns:
            the micro-batch's part of the loss, and its metrics.
        """
        log_probs, entropy = self.log_probs(perturbations, weights, batch)
        mask = batch.response_mask[:, :, 1:]

        def flat(x):
            return x.reshape(-1, x.shape[-1])

        total, count = cross_entropy(flat(log_probs), flat(mask))
        return total / tokens, {
            'loss': (total, count),
            'entropy': (jnp.where(mask, entropy, 0).sum(), count),
        }

    def sft_metrics(self, weights: Weights, batch: GroupBatch) -> Metrics:
        """The metrics of `sft`, without anything to be differentiated by."""
        return self.sft(self.perturbations(weights[0]), weights, batch, 1.0)[1]

    def rl(
        self,
        perturbations: nnx.State,
        weights: Weights,
        batch: GroupBatch,
        targets: PolicyTargets,
        trajectories: float,
        tokens: float,
    ) -> tuple[Float[Array, ''], Metrics]:
        """The objective's policy loss, with its KL term where there are reference log-probs.

        With importance weights the ratio is to the trainer's old log-probs, and the weights are
        theirs to the sampler's; without, the ratio itself is to the sampler's.

        Args:
            perturbations: as for `log_probs`.
            weights: as for `log_probs`.
            batch: a micro-batch.
            targets: of the micro-batch.
            trajectories: in the loss of the minibatch, see `InLoss`.
            tokens: in the loss of the minibatch; the sums are divided by one of the two.

        Returns:
            the micro-batch's part of the loss, and its metrics.
        """
        log_probs, entropy = self.log_probs(perturbations, weights, batch)
        mask = (batch.response_mask & targets.in_loss[..., None])[:, :, 1:]

        def flat(x):
            return x.reshape(-1, x.shape[-1])

        objective, sampler = self.objective, flat(batch.log_probs[:, :, 1:])
        old, weighed_by = sampler, None
        if objective.importance is not None:
            before = log_probs if targets.old_log_probs is None else targets.old_log_probs
            old, weighed_by = jax.lax.stop_gradient(flat(before)), sampler
        arrays = flat(log_probs), old, targets.advantages.reshape(-1), flat(mask)
        total, weight = policy_loss(*arrays, objective, weighed_by)
        by_tokens = (objective.aggregation or objective.ratio) == 'token'
        loss = total / (tokens if by_tokens else trajectories)
        metrics = policy_statistics(*arrays, objective, weighed_by)
        # Before the first update of a rollout batch this is the gap between sampler and trainer.
        gap = jnp.where(arrays[3], jnp.abs(arrays[0] - sampler), 0)
        metrics |= {
            'loss': (total, weight),
            'entropy': (jnp.where(mask, entropy, 0).sum(), mask.sum()),
            'sampler_gap': (gap.sum(), mask.sum()),
        }
        if objective.entropy_coefficient:
            loss -= objective.entropy_coefficient * metrics['entropy'][0] / tokens
        if targets.ref_log_probs is not None:
            distance, count = kl(arrays[0], flat(targets.ref_log_probs), arrays[3])
            loss += objective.kl_coefficient * distance / tokens
            metrics['kl'] = distance, count
        maxima = policy_maxima(arrays[0], arrays[1], arrays[3], objective.ratio) | {
            'sampler_gap_max': gap.max()
        }
        return loss, metrics | {name: (value, jnp.ones(())) for name, value in maxima.items()}


def combined(statistics: list[Metrics]) -> dict[str, float]:
    """Means of the micro-batches' statistics, (sum, weight) pairs; maxima of those named `_max`."""
    means = {}
    for name in statistics[0]:
        pairs = [m[name] for m in statistics]
        if name.endswith('_max'):
            means[name] = float(max(value for value, _ in pairs))
        else:
            means[name] = float(sum(s for s, _ in pairs) / max(sum(w for _, w in pairs), 1e-9))
    return means


def float32(tree: Any) -> Any:
    """The tree with every number in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
