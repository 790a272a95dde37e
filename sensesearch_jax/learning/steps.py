"""SFT and RL steps on group batches: gradients of a micro-batch, the update of a minibatch, and nothing else.

Only the decoder is trained (SenseSearch freezes the vision tower and projector): the tower is not in these programs at
all, its features come with the batch, so frozen parameters carry neither gradients nor optimiser state. Losses are
(sum, weight) pairs; the weight of a whole minibatch is known on the host beforehand, so the gradients of its
micro-batches simply add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from sensesearch_jax.inputs.groups import GroupBatch
from sensesearch_jax.learning.log_probs import token_log_probs
from sensesearch_jax.learning.losses import cross_entropy, kl, policy_loss, policy_maxima, policy_statistics
from sensesearch_jax.policy.groups import group_hidden
from sensesearch_jax.policy.qwen import Policy

Metrics = dict[str, tuple[Array, Array]]


class PolicyTargets(NamedTuple):
    """What RL knows of a batch beyond its tokens; old log-probs are the sampler's own (`GroupBatch.log_probs`)."""

    advantages: Float[np.ndarray, 'b g']
    in_loss: Bool[np.ndarray, 'b g']  # False leaves a trajectory out (failed infrastructure, padding)
    ref_log_probs: Float[np.ndarray, 'b g s'] | None  # of tokens 1 … S−1; None without a KL term


@dataclass(frozen=True)
class Objective:
    """Which policy-gradient loss; see `losses.policy_loss`."""

    ratio: str = 'sequence'
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: str = 'k3'

    @property
    def clips(self) -> dict[str, Any]:
        """The arguments that the loss and its statistics share."""
        return {'ratio': self.ratio, 'clip_low': self.clip_low, 'clip_high': self.clip_high,
                'dual_clip': self.dual_clip}


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm; `config` has learning_rate, schedule ('constant' | 'cosine'), warmup,
    b1, b2, weight_decay and clip_norm. Norm scales and biases do not decay."""
    if config.schedule == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(0, config.learning_rate, min(config.warmup, steps // 2),
                                                      max(steps, 1) + 1, config.learning_rate * 0.05)
    elif config.schedule == 'constant':
        schedule = optax.linear_schedule(0, config.learning_rate, max(config.warmup, 1))
    else:
        raise ValueError(f"schedule '{config.schedule}' is unknown; choose 'constant' or 'cosine'.")
    rate = lambda count: schedule(count + 1)  # optax counts updates from 0, where the rate would be 0
    decays = lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree)  # layers are stacked: matrices have three axes
    return optax.chain(optax.clip_by_global_norm(config.clip_norm),
                       optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=decays))


class Learner:
    """The trained parameters, their optimiser, and the jitted programs on them.

    Args:
        policy: what training starts from.
        optimizer: over the decoder's parameters.
        suppressed: ids that the sampler cannot draw; the trainer's distribution leaves them out as well.
        temperature: that trajectories are sampled at; 1 for SFT.
        objective: the RL loss; not needed for SFT.
        remat: recompute layers in the backward pass to save memory.
    """

    def __init__(self, policy: Policy, optimizer: optax.GradientTransformation, *, suppressed: np.ndarray | None = None,
                 temperature: float = 1.0, objective: Objective | None = None, remat: bool = False):
        self.graph, start, self.frozen = nnx.split(policy, decoder, ...)
        self.parameters = jax.tree.map(jnp.copy, start)  # updates donate their buffers; the policy keeps its own
        self.optimizer, self.objective = optimizer, objective
        self.moments = optimizer.init(self.parameters)
        self.suppressed, self.temperature, self.remat = suppressed, temperature, remat
        self._sft = jax.jit(jax.grad(self._sft_loss, has_aux=True))
        self._rl = jax.jit(jax.grad(self._rl_loss, has_aux=True))
        self._log_probs = jax.jit(lambda parameters, batch: self._forward(parameters, batch)[0])
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        self._update = jax.jit(self._update_program, donate_argnums=(0, 1))

    @property
    def policy(self) -> Policy:
        """The policy with the trained parameters."""
        return nnx.merge(self.graph, self.parameters, self.frozen)

    @property
    def all_parameters(self) -> nnx.State:
        """Trained and frozen parameters together, as the sampler takes them."""
        return nnx.merge_state(self.parameters, self.frozen)

    def log_probs(self, batch: GroupBatch, parameters: nnx.State | None = None) -> Float[Array, 'b g s']:
        """Log-probs of suffix tokens 1 … S−1, without gradients; of other `parameters` for a reference policy."""
        return self._log_probs(self.parameters if parameters is None else parameters, batch)

    def sft_step(self, batches: list[GroupBatch]) -> dict[str, float]:
        """One update on the mean cross-entropy of all own tokens of the micro-batches."""
        weight = float(sum(b.own.sum() for b in batches))
        return self._apply([self._sft(self.parameters, b, weight) for b in batches])

    def rl_step(self, batches: list[tuple[GroupBatch, PolicyTargets]]) -> dict[str, float]:
        """One update on the policy loss of a minibatch, given in micro-batches.

        Returns:
            the means of the policy statistics, and the gradient's norm.
        """
        own = [(b.own & t.in_loss[..., None])[:, :, 1:] for b, t in batches]
        trajectories, tokens = (float(max(sum(x.sum() for x in part), 1))
                                for part in ((o.any(-1) for o in own), own))
        return self._apply([self._rl(self.parameters, b, t, trajectories, tokens) for b, t in batches])

    def _forward(self, parameters, batch: GroupBatch):
        policy = nnx.merge(self.graph, parameters, self.frozen)
        hidden, _ = group_hidden(policy, batch, remat=self.remat)
        return token_log_probs(hidden[:, :, :-1], policy.language.head, batch.tokens[:, :, 1:],
                               suppressed=self.suppressed, temperature=self.temperature)

    def _sft_loss(self, parameters, batch: GroupBatch, weight) -> tuple[Array, Metrics]:
        log_probs, entropy = self._forward(parameters, batch)
        own = batch.own[:, :, 1:]
        flat = lambda x: x.reshape(-1, x.shape[-1])
        total, count = cross_entropy(flat(log_probs), flat(own))
        return total / weight, {'loss': (total, count), 'entropy': (jnp.where(own, entropy, 0).sum(), count)}

    def _rl_loss(self, parameters, batch: GroupBatch, targets: PolicyTargets, trajectories,
                 tokens) -> tuple[Array, Metrics]:
        log_probs, entropy = self._forward(parameters, batch)
        own = (batch.own & targets.in_loss[..., None])[:, :, 1:]
        flat = lambda x: x.reshape(-1, x.shape[-1])
        arrays = (flat(log_probs), flat(batch.log_probs[:, :, 1:]), targets.advantages.reshape(-1), flat(own))
        total, weight = policy_loss(*arrays, **self.objective.clips)
        loss = total / (trajectories if self.objective.ratio == 'sequence' else tokens)
        metrics = policy_statistics(*arrays, **self.objective.clips)
        # Before the first update of a rollout batch this is the gap between sampler and trainer.
        gap = jnp.where(arrays[3], jnp.abs(arrays[0] - arrays[1]), 0)
        metrics |= {'loss': (total, weight), 'entropy': (jnp.where(own, entropy, 0).sum(), own.sum()),
                    'sampler_gap': (gap.sum(), own.sum())}
        if targets.ref_log_probs is not None:
            distance, count = kl(arrays[0], flat(targets.ref_log_probs), arrays[3],
                                 estimator=self.objective.kl_estimator)
            loss += self.objective.kl_coefficient * distance / tokens
            metrics['kl'] = distance, count
        maxima = policy_maxima(arrays[0], arrays[1], arrays[3], ratio=self.objective.ratio)
        return loss, metrics | {name: (value, jnp.ones(())) for name, value in maxima.items()}

    def _apply(self, results: list[tuple[Any, Metrics]]) -> dict[str, float]:
        gradients = results[0][0]
        for more, _ in results[1:]:
            gradients = self._add(gradients, more)
        self.parameters, self.moments, norm = self._update(self.parameters, self.moments, gradients)
        found = [jax.device_get(metrics) for _, metrics in results]
        means = {}
        for name in found[0]:
            pairs = [m[name] for m in found]
            if name.endswith('_max'):
                means[name] = float(max(value for value, _ in pairs))
            else:
                means[name] = float(sum(s for s, _ in pairs) / max(sum(w for _, w in pairs), 1e-9))
        return means | {'gradient_norm': float(norm)}

    def _update_program(self, parameters, moments, gradients):
        updates, moments = self.optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, optax.global_norm(gradients)


def decoder(path: tuple[str, ...], _: Any) -> bool:
    """Filter of the trained parameters: the language model, not the vision tower with its projector."""
    return path[0] == 'language'
