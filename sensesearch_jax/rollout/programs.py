"""The compiled programs of the sampler: prefill, extend and decode, without any state of the host."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache
from sensesearch_jax.model.text_decoder import KeysValues
from sensesearch_jax.rollout.caches import (
    CacheLayout,
    Caches,
    LaneGrid,
    by_field,
    by_head,
    constrained,
    write,
)
from sensesearch_jax.rollout.sampling import Sampling, distribution, draw
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.threads import SharedProgram


class TokenRuns(NamedTuple):
    """N padded runs of tokens for one pass of the policy, with the images among them."""

    tokens: Int[np.ndarray, 'n t']
    positions: Int[np.ndarray, '3 n t']  # rotary
    valid: Bool[np.ndarray, 'n t']  # False for padding
    feature_rows: Int[np.ndarray, 'n t']  # of `features`, for image tokens; −1 for others
    features: Float[np.ndarray, 'n f w']  # of the run's images, one behind the other
    following: Int[np.ndarray, ' n']  # rotary position behind the run


class Chunk(NamedTuple):
    """Tokens that `decode` sampled: [B, G, C] each, the first `count` of a lane are real."""

    tokens: Int[np.ndarray, 'b g c']
    log_probs: Float[np.ndarray, 'b g c']  # under the distribution that was sampled from
    count: Int[np.ndarray, 'b g']


@dataclass(frozen=True, eq=False)
class Programs:
    """Functions of parameters and caches for `jax.jit`.

    Args:
        graph: of the policy, to be merged with the parameters.
        layout: of the caches.
        chunk: C, most tokens that `decode` samples.
        stop: ids that end a turn.
        suppressed: [V], True for ids that are never sampled.
        sampling: how tokens are drawn.
    """

    graph: nnx.GraphDef
    layout: CacheLayout
    chunk: int
    stop: tuple[int, ...]
    suppressed: Bool[np.ndarray, ' v']
    sampling: Sampling

    def compiled(self, mesh: Mesh) -> tuple[SharedProgram, SharedProgram, SharedProgram]:
        """Prefill, extend and decode by `jax.jit`, each of which reuses the memory of the caches
        that it replaces. The last argument of extend and decode is static.
        """
        jit = functools.partial(jax.jit, donate_argnums=1, compiler_options=compiler_options(mesh))
        return (
            SharedProgram(jit(self._prefill_program)),
            SharedProgram(jit(self._extend_program, static_argnums=5)),
            SharedProgram(jit(self._decode_program, static_argnums=6)),
        )

    def _prefill_program(
        self,
        parameters: nnx.State,
        caches: Caches,
        rows: Int[Array, ' n'],
        prompts: TokenRuns,
        pending: Int[Array, ' n'],
    ) -> Caches:
        """Opens rows: computes the keys and values of their prompts and empties their suffixes.

        Args:
            parameters: of the policy.
            caches: of all lanes.
            rows: of the caches, one for each prompt; those out of range are padding.
            prompts: without their last tokens.
            pending: the prompts' last tokens.
        """
        fresh = self._forward(parameters, prompts, ())
        # A row's length masks what is behind its prompt's end.
        free = self.layout.prompt_capacity - prompts.tokens.shape[1]

        def padded(new, axis):
            return jnp.pad(new, [(0, free if i == axis else 0) for i in range(new.ndim)])

        def put(axis, old, new):
            return old.at[:, rows].set(padded(new, axis), mode='drop')

        def to_members(old, new):
            return old.at[rows].set(
                jnp.broadcast_to(new[:, None], (len(rows), self.layout.members)), mode='drop'
            )

        return constrained(
            Caches(
                by_field(put, caches.prefix, self.layout.stored(by_head(fresh))),
                caches.prefix_length.at[rows].set(prompts.valid.sum(1), mode='drop'),
                caches.suffix,
                to_members(caches.suffix_length, jnp.zeros_like(pending)),
                to_members(caches.pending, pending),
                to_members(caches.position, prompts.following),
            )
        )

    def _extend_program(
        self,
        parameters: nnx.State,
        caches: Caches,
        grid: LaneGrid,
        runs: TokenRuns,
        pending: Int[Array, ' n'],
        used: int,
    ) -> Caches:
        """Appends tokens that the policy did not sample to some lanes.

        Args:
            parameters: of the policy.
            caches: of all lanes.
            grid: N rows of one lane each.
            runs: the tokens of each lane.
            pending: the token that each lane runs next, at `runs.following`.
            used: tokens of the suffix caches that are read.
        """
        b, g = self.layout.lanes(grid)
        take, length, contexts = self.layout.read(caches, grid, used)
        fresh = self._forward(parameters, runs, contexts)
        inside = runs.valid & (b < self.layout.groups)[:, None]
        stored = self.layout.stored(by_head(fresh))
        return constrained(
            caches._replace(
                suffix=write(caches.suffix, take, length, stored, inside),
                suffix_length=caches.suffix_length.at[b, g].add(runs.valid.sum(1), mode='drop'),
                pending=caches.pending.at[b, g].set(pending, mode='drop'),
                position=caches.position.at[b, g].set(runs.following, mode='drop'),
            )
        )

    def _decode_program(
        self,
        parameters: nnx.State,
        caches: Caches,
        grid: LaneGrid | None,
        active: Bool[Array, 'r w'],
        budget: Int[Array, 'r w'],
        seeds: Int[Array, 'r w'],
        used: int,
    ) -> tuple[Caches, Chunk]:
        """Samples up to a chunk of tokens on the active lanes of a grid.

        Args:
            parameters: of the policy.
            caches: of all lanes.
            grid: the lanes, or None for all.
            active: lanes that sample.
            budget: most tokens of each lane.
            seeds: of each lane's draws.
            used: tokens of the suffix caches that are read.

        Returns:
            the caches with the sampled tokens, and these as a chunk of the grid's shape.
        """
        c, shape, s = self.chunk, active.shape, self.layout.sizes
        lanes, length, contexts = self.layout.read_by_layer(caches, grid, used)
        first, start = (x[lanes].reshape(shape) for x in (caches.pending, caches.position))
        policy = nnx.merge(self.graph, parameters)
        layers = policy.language.unstack()
        keys = jax.vmap(jax.vmap(jax.random.key))(seeds)
        stop = jnp.array(self.stop, jnp.int32)

        def buffer(dtype):
            return jnp.zeros((*shape, c), dtype)

        def step(state):
            i, pending, live, count, kv, out = state
            sampled = jnp.arange(c) < count[..., None]
            position = start + count
            tokens = policy.embed(pending[..., None]).tokens
            hidden, fresh = policy.language.run_unstacked(
                tokens,
                jnp.broadcast_to(position[None, ..., None], (3, *shape, 1)),
                jnp.ones((*shape, 1), bool),
                layers,
                tuple(
                    (*earlier, new._replace(valid=sampled).of_layer(0))
                    for earlier, new in zip(contexts, kv, strict=True)
                ),
            )
            token, log_prob = self._sample(policy.logits(hidden[..., 0, :]), keys, position)

            def put(axis, old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new, i, axis)

            kv = tuple(by_field(put, layer, by_head(new)) for layer, new in zip(kv, fresh))
            out = tuple(
                jax.lax.dynamic_update_slice_in_dim(o, v[..., None].astype(o.dtype), i, axis=2)
                for o, v in zip(out, (token, log_prob))
            )
            count = count + live
            pending = jnp.where(live, token, pending)
            live = live & ~jnp.isin(token, stop) & (count < budget)
            return i + 1, pending, live, count, kv, out

        def room(*sizes):
            return jnp.zeros((1, *shape, s.kv_heads, *sizes), compute_dtype(parameters))

        # What is sampled is kept by layer: a layer's part of one array would be copied for every
        # token.
        initial = (
            0,
            first,
            active & (budget > 0),
            jnp.zeros(shape, jnp.int32),
            (KVCache(room(s.head_width, c), room(c, s.head_width), None),) * s.layers,
            (buffer(jnp.int32), buffer(jnp.float32)),
        )
        _, pending, _, count, kv, out = jax.lax.while_loop(
            lambda state: (state[0] < c) & state[2].any(), step, initial
        )

        def stacked(*layers):
            return jnp.concatenate([x.reshape(1, -1, 1, *x.shape[3:]) for x in layers])

        merged = write(
            caches.suffix,
            lanes,
            length,
            self.layout.stored(jax.tree.map(stacked, *kv)),
            jnp.arange(c) < count.reshape(-1, 1),
        )
        b, g = self.layout.lanes(grid)
        caches = constrained(
            caches._replace(
                suffix=merged,
                suffix_length=caches.suffix_length.at[b, g].add(count.ravel(), mode='drop'),
                pending=caches.pending.at[b, g].set(pending.ravel(), mode='drop'),
                position=caches.position.at[b, g].add(count.ravel(), mode='drop'),
            )
        )
        return caches, Chunk(*out, count)

    def _forward(
        self, parameters: nnx.State, runs: TokenRuns, contexts: tuple[KVCache, ...]
    ) -> KeysValues:
        """Keys and values of runs of tokens, each of one member of a row."""
        policy = nnx.merge(self.graph, parameters)
        embedded = policy.embed(runs.tokens[:, None], runs.features, runs.feature_rows[:, None])
        return policy.language(embedded, runs.positions[:, :, None], runs.valid[:, None], contexts)[
            1
        ]

    def _sample(self, logits, keys, position):
        """One token per lane, and its log-prob under the distribution that it is drawn from."""
        allowed = jnp.where(self.suppressed, MASKED, logits)
        used = distribution(allowed, self.sampling)
        if self.sampling.temperature == 0:
            token = jnp.argmax(used, -1)
        else:

            def lane(key, place, used):
                return draw(jax.random.fold_in(key, place), used)

            token = jax.vmap(jax.vmap(lane))(keys, position, used)

        log_prob = jnp.take_along_axis(used, token[..., None], -1)[..., 0]
        return token.astype(jnp.int32), log_prob


def compute_dtype(parameters: nnx.State) -> np.dtype:
    """The dtype that a policy with these parameters computes in: that of its embeddings."""
    return np.dtype(parameters['language']['embedding'].dtype)
