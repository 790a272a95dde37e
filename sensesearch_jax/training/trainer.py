"""SFT and RL steps on group batches: gradients of a micro-batch, the update of a minibatch, and
nothing else.

Only the decoder is trained (SenseSearch freezes the vision tower and projector): the tower is not
in these programs at all, its features come with the batch, so frozen parameters carry neither
gradients nor optimiser state. Losses are (sum, weight) pairs; the weight of a whole minibatch is
known on the host beforehand, so the gradients of its micro-batches simply add up: into one sum,
while the host makes the next micro-batch. So memory does not grow with their number.

The steps are programs over a mesh (runtime/mesh.py), which may have one device: parameters,
gradients and moments are sharded by their axes, batches by rows. In a program of several processes each
gives the rows that it has sampled, and all make the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.model.lora import has_adapters, merge_adapters
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.text_decoder import REMAT
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.mesh import make_mesh, rows_sharding, shardings
from sensesearch_jax.runtime.threads import LAUNCHING, SharedProgram, parallel_sum
from sensesearch_jax.training.batch_losses import (
    BatchLosses,
    InLoss,
    Metrics,
    Objective,
    PolicyTargets,
    combined,
    float32,
)
from sensesearch_jax.training.optimizer import finite_update
from sensesearch_jax.training.placement import first_moments, frozen, master_copy, placed
from sensesearch_jax.training.trained_part import decoder

NOTHING = 1e-5  # advantages are of order 1; less is rounding


class Learner:
    """The trained parameters, their optimiser, and the jitted programs on them.

    Args:
        policy: what training starts from; a policy of mere shapes (`abstract_policy`) gives a
            learner that can only `lower` its programs.
        optimizer: over the decoder's parameters.
        suppressed: ids that the sampler cannot draw; the trainer's distribution leaves them out as
            well.
        temperature: that trajectories are sampled at; 1 for SFT.
        objective: the RL loss; not needed for SFT.
        remat: what a layer keeps for the backward pass, a name of `model.text_decoder.REMAT`.
        mesh: devices that train; the first one alone by default.
        dtype: of the forward and backward pass, and so of a micro-batch's gradient. Parameters,
            sums of gradients and moments are float32 always.
        threads: micro-batches that are run side by side, of one process.
        trained: filter of the parameters that are, one of `trained_part`.
        averaged: keeps the mean of the parameters too, which `average` moves on.

    Raises:
        ValueError: an unknown remat policy.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: optax.GradientTransformation,
        *,
        suppressed: np.ndarray | None = None,
        temperature: float = 1.0,
        objective: Objective | None = None,
        remat: str = 'none',
        mesh: Mesh | None = None,
        dtype: DTypeLike = jnp.float32,
        threads: int = 1,
        averaged: bool = False,
        trained: Callable[[tuple[str, ...], Any], bool] = decoder,
    ):
        if remat not in REMAT:
            raise ValueError(f"remat '{remat}' is unknown; choose from {', '.join(REMAT)}.")
        self.mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.sizes = policy.sizes
        self.adapted = has_adapters(policy)
        # What of the decoder stays as it is goes into the programs as an operand: they would hold
        # it as a constant.
        self.graph, start, kept, self.tower = nnx.split(policy, trained, decoder, ...)
        self.optimizer, self.objective, self.dtype = optimizer, objective, jnp.dtype(dtype)
        losses = BatchLosses(
            self.graph, self.tower, suppressed, temperature, objective, remat, self.dtype
        )
        self.threads = threads if jax.process_count() == 1 else 1

        self.kept = frozen(kept, self.mesh, self.dtype)
        placements = shardings(start, self.mesh)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        options = compiler_options(self.mesh)
        self.parameters = master_copy(start, self.mesh)
        self.mean = master_copy(start, self.mesh) if averaged else None
        moments = shardings(jax.eval_shape(optimizer.init, self.parameters), self.mesh)
        self.moments = first_moments(optimizer, self.parameters, moments)

        def shared(function, places, **of_jit):
            return SharedProgram(jax.jit(function, out_shardings=places, **of_jit))

        def program(function, places):
            return shared(function, places, compiler_options=options)

        def gradient(loss):
            def of_weights(weights, *rest):
                zeros = losses.perturbations(weights[0])
                return jax.grad(loss, has_aux=True)(zeros, weights, *rest)

            return program(of_weights, (placements, replicated))

        def log_probs(weights, batch):
            return losses.log_probs(losses.perturbations(weights[0]), weights, batch)[0]

        self._sft, self._rl = gradient(losses.sft), gradient(losses.rl)
        self._log_probs = program(log_probs, rows_sharding(self.mesh, 3))
        self._sft_loss = program(losses.sft_metrics, replicated)
        self._exact = shared(float32, placements)
        self._add = shared(lambda a, b: jax.tree.map(jnp.add, a, b), placements, donate_argnums=0)
        self._average = shared(optax.incremental_update, placements, donate_argnums=1)
        self._update = shared(
            self._update_program, (placements, moments, replicated), donate_argnums=(0, 1)
        )
        self.updates = 0  # made so far
        self.skipped_in_a_row = 0  # updates that were not finite, since the last one made

    @property
    def policy(self) -> Policy:
        """The policy with the trained parameters, or with their mean where one is kept; adapters are
        merged into its matrices.
        """
        return merge_adapters(self.unmerged)

    @property
    def unmerged(self) -> Policy:
        """The same, with its adapters."""
        return self._whole(self._resulting)

    @property
    def _resulting(self) -> nnx.State:
        return self.parameters if self.mean is None else self.mean

    def average(self, share: float) -> None:
        """Takes the parameters as they are into the mean, with that share; 1/n at the n-th time
        makes all count alike.

        With gradients that are mostly noise, parameters wander as well as move on; their mean
        wanders less (Polyak and Juditsky, Acceleration of stochastic approximation by averaging,
        1992).
        """
        with jax.set_mesh(self.mesh):
            self.mean = self._average(self.parameters, self.mean, share)

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        of_losses = self._sft, self._sft_loss, self._rl, self._log_probs
        of_arrays = self._exact, self._add, self._average, self._update
        return sum(p.program._cache_size() for p in (*of_losses, *of_arrays))

    @property
    def all_parameters(self) -> nnx.State:
        """Trained and frozen parameters, as the sampler takes them: merged, in the loss's type."""
        return self._computed(self.parameters)

    @property
    def validated_parameters(self) -> nnx.State:
        """Those of `policy`, as the sampler takes them."""
        return self._computed(self._resulting)

    def _whole(self, trained: nnx.State) -> Policy:
        return nnx.merge(self.graph, trained, self.kept, self.tower)

    def _computed(self, trained: nnx.State) -> nnx.State:
        with LAUNCHING:
            if self.adapted:
                return nnx.state(merge_adapters(self._whole(trained)))
            computed = jax.tree.map(lambda x: x.astype(self.dtype), trained)
            return nnx.merge_state(computed, self.kept, self.tower)

    def log_probs(
        self, batch: GroupBatch, parameters: nnx.State | None = None
    ) -> Float[Array, 'b g s']:
        """Log-probs of suffix tokens 1 … S−1, without gradients; of a reference's `parameters`."""
        parameters = self.parameters if parameters is None else parameters
        with jax.set_mesh(self.mesh):
            return self._log_probs((parameters, self.kept), placed(batch, self.mesh))

    def local_log_probs(self, batch: GroupBatch) -> Float[np.ndarray, 'b g s']:
        """Log-probs as `log_probs` gives them, of this process's rows, on the host."""
        found = self.log_probs(batch)
        if jax.process_count() > 1:
            found = multihost_utils.global_array_to_host_local_array(
                found, self.mesh, found.sharding.spec
            )
        return np.asarray(found)

    def sft_step(
        self, batches: Iterable[GroupBatch], tokens: float | None = None
    ) -> dict[str, float]:
        """One update on the mean cross-entropy of all response tokens of the micro-batches.

        Args:
            batches: taken one at a time, each when the one before it has begun to run.
            tokens: response tokens that they hold in all processes; None counts them, which takes
                them all at once.

        Returns:
            the loss's statistics and those of the update, see `_apply`.
        """
        if tokens is None:
            batches = list(batches)
            (tokens,) = multihost.global_sums(sum(b.response_mask.sum() for b in batches))
        return self._apply(
            *self._summed(
                lambda batch: self._sft((self.parameters, self.kept), batch, tokens), batches
            )
        )

    def sft_loss(self, batches: Iterable[GroupBatch]) -> float:
        """The mean cross-entropy of all response tokens of the micro-batches, without an update."""
        found = []
        for batch in batches:
            with jax.set_mesh(self.mesh):
                batch = placed(batch, self.mesh)
                found.append(jax.device_get(self._sft_loss((self.parameters, self.kept), batch)))
        return combined(found)['loss']

    def rl_step(
        self,
        batches: Iterable[tuple[GroupBatch, PolicyTargets]],
        in_loss: InLoss | None = None,
        reference: nnx.State | None = None,
    ) -> dict[str, float]:
        """One update on the policy loss of a minibatch, given in micro-batches.

        Args:
            batches: taken one at a time, each when the one before it has begun to run.
            in_loss: what the whole minibatch holds, those micro-batches too that do not `teach` and
                are left out; None counts and leaves out here, which takes them all at once.
            reference: parameters of the policy that the KL term keeps near to; its log-probs are
                computed here.

        Returns:
            the means of the policy statistics and those of the update, see `_apply`.
        """
        if in_loss is None:
            batches = list(batches)
            in_loss = self._in_loss(batches)
            batches = [pair for pair in batches if self.teaches(pair[1])] or batches[:1]

        def gradient(pair):
            batch, targets = pair
            if reference is not None:
                targets = targets._replace(
                    ref_log_probs=self._log_probs((reference, self.kept), batch)
                )
            return self._rl(
                (self.parameters, self.kept),
                batch,
                targets,
                max(in_loss.trajectories, 1.0),
                max(in_loss.tokens, 1.0),
            )

        return self._apply(*self._summed(gradient, batches))

    def teaches(self, targets: PolicyTargets) -> bool:
        """Whether a micro-batch can have a gradient: not where every group's rewards are equal and
        neither a KL term nor an entropy bonus pulls.

        Several processes make all passes, so that none waits for another that has nothing to do.
        """
        return (
            bool(self.objective.kl_coefficient or self.objective.entropy_coefficient)
            or jax.process_count() > 1
            or bool(np.abs(targets.advantages[targets.in_loss]).max(initial=0) > NOTHING)
        )

    def _in_loss(self, batches: list[tuple[GroupBatch, PolicyTargets]]) -> InLoss:
        masks = [(b.response_mask & t.in_loss[..., None])[:, :, 1:] for b, t in batches]
        return InLoss(
            *multihost.global_sums(sum(m.any(-1).sum() for m in masks), sum(m.sum() for m in masks))
        )

    def _summed(
        self, gradient: Callable[[Any], tuple[nnx.State, Metrics]], batches: Iterable[Any]
    ) -> tuple[nnx.State, list[Metrics]]:
        """The sum of the micro-batches' gradients, in their order and in float32, and the
        statistics of each.

        There are never more gradients than the sum and one for each thread. In one thread a
        micro-batch is made while the device works on the one before.
        """
        statistics: list[Metrics] = []

        def computed(batch):
            if self.threads == 1 and statistics:
                # The host would run ahead, with all gradients in the queue.
                jax.block_until_ready(statistics[-1])
            with jax.set_mesh(self.mesh):
                found = gradient(placed(batch, self.mesh))
            # A thread has to wait for its own, or it would hand in the next one behind the same
            # queue.
            return jax.block_until_ready(found) if self.threads > 1 else found

        def add(total, found):
            grads, metrics = found
            statistics.append(metrics)
            with jax.set_mesh(self.mesh):
                if total is not None:
                    return self._add(total, grads)
                return grads if self.dtype == jnp.float32 else self._exact(grads)

        return parallel_sum(computed, batches, add, self.threads), statistics

    def lower(
        self, batch: GroupBatch, targets: PolicyTargets | None = None
    ) -> dict[str, jax.stages.Lowered]:
        """The programs of a step on such a batch, not yet compiled and never run: for devices that
        are not here too.

        Args:
            batch: of arrays or `jax.ShapeDtypeStruct`s.
            targets: likewise; with them the step is RL's, without SFT's.
        """
        with jax.set_mesh(self.mesh):
            if targets is None:
                gradient = self._sft.program.lower(
                    (self.parameters, self.kept), placed(batch, self.mesh), 1.0
                )
            else:
                gradient = self._rl.program.lower(
                    (self.parameters, self.kept), *placed((batch, targets), self.mesh), 1.0, 1.0
                )
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                self.parameters,
            )
            return {
                'gradient': gradient,
                'update': self._update.program.lower(self.parameters, self.moments, shapes),
            }

    def _apply(self, gradients: nnx.State, statistics: list[Metrics]) -> dict[str, float]:
        """The update with a sum of gradients.

        Returns:
            the means of the micro-batches' statistics, the norms and
            `learning_rate` of `finite_update`, and `skipped_updates`: 1 where the gradient was not
            finite and nothing was updated, else 0.
        """
        with jax.set_mesh(self.mesh):
            self.parameters, self.moments, norms = self._update(
                self.parameters, self.moments, gradients
            )
        found, norms = jax.device_get((statistics, norms))
        skipped = not math.isfinite(norms['grad_norm'])
        self.updates += not skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return (
            combined(found)
            | {name: float(value) for name, value in norms.items()}
            | {'skipped_updates': float(skipped)}
        )

    def _update_program(self, parameters, moments, gradients):
        return finite_update(self.optimizer, parameters, moments, float32(gradients))
