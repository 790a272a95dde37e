"""SFT and RL steps on group batches: gradients of a micro-batch, the update of a minibatch, and nothing else.

Only the decoder is trained (SenseSearch freezes the vision tower and projector): the tower is not in these programs at
all, its features come with the batch, so frozen parameters carry neither gradients nor optimiser state. Losses are
(sum, weight) pairs; the weight of a whole minibatch is known on the host beforehand, so the gradients of its
micro-batches simply add up.

The steps are programs over a mesh (runtime/mesh.py), which may have one device: parameters, gradients and moments are
cut by their axes, batches by rows. In a program of several processes each gives the rows that it has sampled, and
all make the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from sensesearch_jax.inputs.groups import GroupBatch
from sensesearch_jax.learning.log_probs import token_log_probs
from sensesearch_jax.learning.losses import cross_entropy, kl, policy_loss, policy_maxima, policy_statistics
from sensesearch_jax.policy.groups import group_hidden
from sensesearch_jax.policy.language import REMAT
from sensesearch_jax.policy.packing import packed, spread
from sensesearch_jax.policy.parameters import read
from sensesearch_jax.policy.qwen import Policy
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.mesh import ROWS, is_abstract, make_mesh, rows_sharding, shardings
from sensesearch_jax.runtime.threads import SharedProgram, side_by_side

Metrics = dict[str, tuple[Array, Array]]
NOTHING = 1e-5  # advantages are of order 1; less is rounding


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


def decoder(path: tuple[str, ...], _: Any) -> bool:
    """Filter of the trained parameters: the language model, not the vision tower with its projector."""
    return path[0] == 'language'


def inner_decoder(path: tuple[str, ...], _: Any) -> bool:
    """The language model without its embedding, and so without its head where the two are tied."""
    return decoder(path, _) and path[1] != 'embedding'


def trained_part(config: Any) -> Callable[[tuple[str, ...], Any], bool]:
    """The filter of what the config's `freeze_embedding` leaves to train."""
    return inner_decoder if config.freeze_embedding else decoder


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm.

    Args:
        config: learning_rate, schedule ('constant' | 'cosine'), warmup, b1, b2, eps, weight_decay, clip_norm. Only
            matrices decay.
        steps: updates that the cosine comes down over.

    Raises:
        ValueError: an unknown schedule.
    """
    if config.schedule == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(0, config.learning_rate, min(config.warmup, steps // 2),
                                                      max(steps, 1) + 1, config.learning_rate * 0.05)
    elif config.schedule == 'constant':
        schedule = optax.linear_schedule(0, config.learning_rate, max(config.warmup, 1))
    else:
        raise ValueError(f"schedule '{config.schedule}' is unknown; choose 'constant' or 'cosine'.")
    rate = lambda count: schedule(count + 1)  # optax counts updates from 0, where the rate would be 0
    decays = lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree)  # stacked matrices have three axes
    return optax.chain(optax.clip_by_global_norm(config.clip_norm),
                       optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decays))


class Learner:
    """The trained parameters, their optimiser, and the jitted programs on them.

    Args:
        policy: what training starts from; a policy of mere shapes (`abstract_policy`) gives a learner that can only
            `lower` its programs.
        optimizer: over the decoder's parameters.
        suppressed: ids that the sampler cannot draw; the trainer's distribution leaves them out as well.
        temperature: that trajectories are sampled at; 1 for SFT.
        objective: the RL loss; not needed for SFT.
        remat: what a layer keeps for the backward pass, a name of `policy.language.REMAT`.
        mesh: devices that train; the first one alone by default.
        dtype: of the forward and backward pass, and so of a micro-batch's gradient. Parameters, sums of gradients and
            moments are float32 always.
        threads: micro-batches that are run side by side, of one process.
        trained: filter of the parameters that are: `decoder` or `inner_decoder`.
        averaged: keeps the mean of the parameters too, which `average` moves on.

    Raises:
        ValueError: an unknown remat policy.
    """

    def __init__(self, policy: Policy, optimizer: optax.GradientTransformation, *, suppressed: np.ndarray | None = None,
                 temperature: float = 1.0, objective: Objective | None = None, remat: str = 'none',
                 mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32, threads: int = 1, averaged: bool = False,
                 trained: Callable[[tuple[str, ...], Any], bool] = decoder):
        if remat not in REMAT:
            raise ValueError(f"remat '{remat}' is unknown; choose from {', '.join(REMAT)}.")
        self.mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.graph, start, self.frozen = nnx.split(policy, trained, ...)
        # What of the decoder stays as it is goes into the programs as an operand: they would hold it as a constant.
        kept, self.tower = nnx.split_state(self.frozen, decoder, ...)
        self.optimizer, self.objective, self.dtype = optimizer, objective, jnp.dtype(dtype)
        self.suppressed, self.temperature, self.remat = suppressed, temperature, remat
        self.threads = threads if jax.process_count() == 1 else 1
        computed = lambda tree: jax.tree.map(lambda x: x.astype(self.dtype), tree)
        self.kept = kept if is_abstract(start) else jax.device_put(computed(kept), shardings(kept, self.mesh))
        places = shardings(start, self.mesh)
        whole = NamedSharding(self.mesh, PartitionSpec())
        options = compiler_options(self.mesh)
        self.parameters = self._master(start, places)
        self.mean = self._master(start, places) if averaged else None
        moments = shardings(jax.eval_shape(optimizer.init, self.parameters), self.mesh)
        self.moments = self._first_moments(moments)
        gradient = lambda loss: SharedProgram(jax.jit(
            lambda held, *rest: jax.grad(loss, has_aux=True)(self._slopes(held[0]), held, *rest),
            out_shardings=(places, whole), compiler_options=options))
        self._sft, self._rl = gradient(self._sft_loss), gradient(self._rl_loss)
        self._log_probs = SharedProgram(jax.jit(
            lambda held, batch: self._forward(self._slopes(held[0]), held, batch)[0],
            out_shardings=rows_sharding(self.mesh, 3), compiler_options=options))
        self._exact = jax.jit(float32, out_shardings=places)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0, out_shardings=places)
        self._average = jax.jit(optax.incremental_update, donate_argnums=1, out_shardings=places)
        self._update = jax.jit(self._update_program, donate_argnums=(0, 1), out_shardings=(places, moments, whole))

    @property
    def policy(self) -> Policy:
        """The policy with the trained parameters, or with their mean where one is kept."""
        return nnx.merge(self.graph, self.parameters if self.mean is None else self.mean, self.frozen)

    def average(self, share: float) -> None:
        """Takes the parameters as they are into the mean, with that share; 1/n at the n-th time makes all count alike.

        With gradients that are mostly noise, parameters wander as well as move on; their mean wanders less (Polyak and
        Juditsky, Acceleration of stochastic approximation by averaging, 1992).
        """
        with jax.set_mesh(self.mesh):
            self.mean = self._average(self.parameters, self.mean, share)

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        shared = (program.program for program in (self._sft, self._rl, self._log_probs))
        return sum(p._cache_size() for p in (*shared, self._exact, self._add, self._average, self._update))

    @property
    def all_parameters(self) -> nnx.State:
        """Trained and frozen parameters together, as the sampler takes them: in the type that the loss computes in."""
        computed = jax.tree.map(lambda x: x.astype(self.dtype), self.parameters)
        return nnx.merge_state(computed, self.kept, self.tower)

    def log_probs(self, batch: GroupBatch, parameters: nnx.State | None = None) -> Float[Array, 'b g s']:
        """Log-probs of suffix tokens 1 … S−1, without gradients; of other `parameters` for a reference policy."""
        return self.all_log_probs([batch], parameters)[0]

    def all_log_probs(self, batches: Sequence[GroupBatch],
                      parameters: nnx.State | None = None) -> list[Float[Array, 'b g s']]:
        """`log_probs` of several batches, side by side."""
        parameters = self.parameters if parameters is None else parameters

        def found(batch: GroupBatch) -> Float[Array, 'b g s']:
            with jax.set_mesh(self.mesh):
                return jax.block_until_ready(self._log_probs((parameters, self.kept), self._placed(batch)))

        return side_by_side(found, batches, min(self.threads, len(batches)))

    def sft_step(self, batches: list[GroupBatch]) -> dict[str, float]:
        """One update on the mean cross-entropy of all own tokens of the micro-batches."""
        weight, = multihost.total(sum(b.own.sum() for b in batches))
        return self._apply(self._gradients(self._sft, [(b,) for b in batches], weight))

    def rl_step(self, batches: list[tuple[GroupBatch, PolicyTargets]]) -> dict[str, float]:
        """One update on the policy loss of a minibatch, given in micro-batches.

        Those that do not `teach` count in the loss's mean and cost no pass.

        Returns:
            the means of the policy statistics, and the gradient's norm.
        """
        teaching = [pair for pair in batches if self.teaches(pair[1])] or batches[:1]
        return self._apply(self.policy_gradients(teaching, batches))

    def teaches(self, targets: PolicyTargets) -> bool:
        """Whether a micro-batch can have a gradient: not where every group's rewards are equal and no KL term pulls.

        Several processes make all passes, so that none waits for another that has nothing to do.
        """
        return (targets.ref_log_probs is not None or jax.process_count() > 1
                or bool(np.abs(targets.advantages[targets.in_loss]).max(initial=0) > NOTHING))

    def policy_gradients(self, batches: list[tuple[GroupBatch, PolicyTargets]],
                         minibatch: list[tuple[GroupBatch, PolicyTargets]] | None = None
                         ) -> list[tuple[nnx.State, Metrics]]:
        """The gradient of each micro-batch's share of the minibatch's policy loss, and its statistics.

        Args:
            minibatch: all micro-batches, where `batches` are only some of them.
        """
        own = [(b.own & t.in_loss[..., None])[:, :, 1:] for b, t in minibatch or batches]
        trajectories, tokens = multihost.total(sum(o.any(-1).sum() for o in own), sum(o.sum() for o in own))
        return self._gradients(self._rl, batches, max(trajectories, 1.0), max(tokens, 1.0))

    def _gradients(self, program: Callable, batches: Sequence[tuple],
                   *weights: float) -> list[tuple[nnx.State, Metrics]]:
        """The program's gradient of each micro-batch."""
        def gradient(batch):
            with jax.set_mesh(self.mesh):
                found = program((self.parameters, self.kept), *self._placed(batch), *weights)
            # A thread has to wait for its own, or it would hand in the next one behind the same queue.
            return jax.block_until_ready(found) if self.threads > 1 else found

        return side_by_side(gradient, batches, min(self.threads, len(batches)))

    def lower(self, batch: GroupBatch, targets: PolicyTargets | None = None) -> dict[str, jax.stages.Lowered]:
        """The programs of a step on such a batch, not yet compiled and never run: for devices that are not here too.

        Args:
            batch, targets: arrays or `jax.ShapeDtypeStruct`s; with targets the step is RL's, else SFT's.
        """
        with jax.set_mesh(self.mesh):
            if targets is None:
                gradient = self._sft.program.lower((self.parameters, self.kept), self._placed(batch), 1.0)
            else:
                gradient = self._rl.program.lower((self.parameters, self.kept), *self._placed((batch, targets)), 1.0, 1.0)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                                  self.parameters)
            return {'gradient': gradient, 'update': self._update.lower(self.parameters, self.moments, shapes)}

    def _master(self, start, places):
        """The parameters in float32, on their devices; shapes where the policy has no more than shapes."""
        if is_abstract(start):
            return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place), start, places)
        # Updates donate their buffers, so these are copies: the policy keeps its own.
        master = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree),
                         out_shardings=places)
        return master(jax.device_put(start, places))

    def _first_moments(self, places):
        if is_abstract(self.parameters):
            return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                                jax.eval_shape(self.optimizer.init, self.parameters), places)
        return jax.jit(self.optimizer.init, out_shardings=places)(self.parameters)

    def _placed(self, batch: Any) -> Any:
        """A batch's arrays, of this process's rows, as arrays over the mesh, of all rows."""
        shards = math.prod(self.mesh.shape[axis] for axis in ROWS)

        def place(path, x):
            if isinstance(x, jax.Array):
                return x
            axis = 1 if path[-1].name in ('positions', 'prompt_positions') else 0
            rows = x.shape[axis] * jax.process_count()
            if rows % shards:
                raise ValueError(f'{rows} rows in a micro-batch cannot be cut over data × fsdp = {shards} devices; '
                                 'make micro_batch a multiple of it.')
            sharding = rows_sharding(self.mesh, len(x.shape), axis)
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree_util.tree_map_with_path(place, batch)

    def _slopes(self, parameters):
        """What gradients are taken by: in the loss's type and never looked at; see `parameters.read`."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, self.dtype), parameters)

    def _forward(self, slopes, held, batch: GroupBatch):
        # Layers are read one by one as they are run, the embedding, the head and the last norm here.
        parameters, kept = held
        apart = lambda state: nnx.split_state(state, lambda path, _: path[1] == 'layers', ...)
        (layers, rest), (of_layers, of_rest) = apart(parameters), apart(slopes)
        policy = nnx.merge(self.graph, layers, jax.tree.map(read, rest, of_rest), kept, self.tower)
        hidden, _ = group_hidden(policy, batch, remat=self.remat, slopes=of_layers['language']['layers'])
        following = jnp.pad(batch.tokens[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
        found = token_log_probs(hidden, policy.language.head, packed(following, batch.packing), suppressed=self.suppressed,
                                temperature=self.temperature)
        return tuple(spread(x, batch.packing, batch.valid.shape[1:])[:, :, :-1] for x in found)

    def _sft_loss(self, slopes, held, batch: GroupBatch, weight) -> tuple[Array, Metrics]:
        log_probs, entropy = self._forward(slopes, held, batch)
        own = batch.own[:, :, 1:]
        flat = lambda x: x.reshape(-1, x.shape[-1])
        total, count = cross_entropy(flat(log_probs), flat(own))
        return total / weight, {'loss': (total, count), 'entropy': (jnp.where(own, entropy, 0).sum(), count)}

    def _rl_loss(self, slopes, held, batch: GroupBatch, targets: PolicyTargets, trajectories,
                 tokens) -> tuple[Array, Metrics]:
        log_probs, entropy = self._forward(slopes, held, batch)
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
        with jax.set_mesh(self.mesh):
            gradients = results[0][0] if len(results) == 1 or self.dtype == jnp.float32 else self._exact(results[0][0])
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
        gradients = float32(gradients)
        updates, moments = self.optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, optax.global_norm(gradients)


def float32(tree: Any) -> Any:
    """The tree with every number in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
