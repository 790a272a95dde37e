"""The sampler: prompts prefilled once per group, suffix caches per trajectory, decoding in compiled chunks.

Lanes are a B × G grid: B groups in flight, G trajectories each. Every lane has one pending token, the last of its
sequence, whose keys and values are not computed yet. `prefill` opens rows, `extend` appends a tool's response to some
lanes, `decode` samples until every active lane stops or a chunk is full. Shapes come from few buckets, so that after
the first rollouts nothing compiles any more.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.inputs.groups import ImageTable, bucket, feature_tables, image_rows
from sensesearch_jax.inputs.positions import mrope_positions
from sensesearch_jax.policy.attention import MASKED, Context
from sensesearch_jax.policy.language import KeysValues
from sensesearch_jax.policy.qwen import Policy
from sensesearch_jax.runtime.mesh import make_mesh


LENGTH_STEP = 128  # of tool responses
CACHE_STEP = 384  # of how much of the suffix cache decoding reads


class Caches(NamedTuple):
    """All keys and values of the lanes in flight; `*_length` say how much of each is real."""

    prefix: KeysValues  # [L, B, 1, P, K, E]
    prefix_length: Int[Array, 'b']
    suffix: KeysValues  # [L, B, G, S, K, E]
    suffix_length: Int[Array, 'b g']
    pending: Int[Array, 'b g']  # the token to run next
    position: Int[Array, 'b g']  # its rotary position


class Chunk(NamedTuple):
    """What `decode` sampled: [B, G, C] each, the first `count` of a lane are real."""

    tokens: Int[np.ndarray, 'b g c']
    log_probs: Float[np.ndarray, 'b g c']  # under the distribution that was sampled from
    raw_log_probs: Float[np.ndarray, 'b g c']  # at temperature 1 and with no id suppressed
    count: Int[np.ndarray, 'b g']


class Engine:
    """Holds the caches on the device and the compiled programs that work on them.

    Args:
        policy: gives structure and sizes; the parameters to sample with are set by `set_parameters`.
        groups, members: B and G.
        prompt_capacity, suffix_capacity: P and S in tokens; `chunk` more are kept free at the end of S.
        chunk: most tokens that `decode` samples between two looks of the host.
        prefill_rows, extend_lanes: rows and lanes that one pass of prefill or extend takes; fewer are padded, more
            go in several passes, so that each has one shape.
        stop: ids that end a turn.
        suppressed: ids that are never sampled (vision placeholders).
        temperature: of sampling; 0 takes the most likely token.
    """

    def __init__(self, policy: Policy, *, groups: int, members: int, prompt_capacity: int, suffix_capacity: int,
                 chunk: int, stop: Sequence[int], suppressed: Sequence[int], temperature: float = 1.0,
                 prefill_rows: int = 4, extend_lanes: int = 16):
        if temperature < 0:
            raise ValueError(f'temperature {temperature} is negative; give 0 for greedy decoding or a positive number.')
        self.graph, parameters = nnx.split(policy)
        self.set_parameters(parameters)
        self.sizes = policy.sizes.language
        self.image_token, self.merge = policy.sizes.image_token, policy.sizes.vision.merge_size
        self.groups, self.members, self.chunk, self.temperature = groups, members, chunk, temperature
        self.prompt_capacity, self.suffix_capacity = prompt_capacity, suffix_capacity
        self.prefill_rows = min(prefill_rows, groups)
        self.extend_lanes = min(extend_lanes, groups * members)
        self.stop = jnp.array(list(stop), jnp.int32)
        self.suppressed = np.zeros(self.sizes.vocabulary, bool)
        self.suppressed[list(suppressed)] = True
        self.length = np.zeros((groups, members), np.int64)  # the host's copy of suffix lengths
        self.tokens_run = 0  # through the language model, padding aside
        self._prefill = jax.jit(self._prefill_program, donate_argnums=1)
        self._extend = jax.jit(self._extend_program, donate_argnums=1)
        self._decode = jax.jit(self._decode_program, donate_argnums=1, static_argnums=5)
        self.caches = self._empty()

    def set_parameters(self, parameters: nnx.State) -> None:
        """New weights of the same structure; nothing compiles again."""
        self.parameters = parameters
        place = jax.tree.leaves(parameters)[0].sharding
        # Programs of a policy that is cut over devices must know of them: kernels run per shard.
        self.mesh = place.mesh if isinstance(place, NamedSharding) else make_mesh(devices=jax.local_devices()[:1])

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return sum(f._cache_size() for f in (self._prefill, self._extend, self._decode))

    def _empty(self) -> Caches:
        s, b, g = self.sizes, self.groups, self.members
        dtype = self.parameters['language']['embedding'][...].dtype
        room = lambda lanes, tokens: jnp.zeros((s.layers, b, lanes, tokens, s.kv_heads, s.head_width), dtype)
        pair = lambda *shape: KeysValues(room(*shape), room(*shape))
        zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
        return Caches(pair(1, self.prompt_capacity), zeros(b), pair(g, self.suffix_capacity + self.chunk),
                      zeros(b, g), zeros(b, g), zeros(b, g))

    # Host side: arrays out of token lists, in few shapes.

    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], images: Sequence[Sequence[str]],
                table: ImageTable) -> list[int]:
        """Opens rows with new prompts and empties their members' suffixes. Returns each row's next position.

        Raises:
            ValueError: a prompt longer than the capacity.
        """
        longest = max(map(len, prompts)) - 1
        if longest > self.prompt_capacity:
            raise ValueError(f'A prompt of {longest + 1} tokens does not fit into {self.prompt_capacity}; raise '
                             'prompt_capacity or lower max_pixels.')
        if len(rows) > (n := self.prefill_rows):
            return [position for first in range(0, len(rows), n) for position in self.prefill(
                rows[first:first + n], prompts[first:first + n], images[first:first + n], table)]
        batch = _pieces([p[:-1] for p in prompts], images, table, self.image_token, self.merge, n,
                        self.prompt_capacity, [0] * len(prompts))
        pending = np.zeros(n, np.int32)
        pending[:len(rows)] = [p[-1] for p in prompts]
        slots = np.full(n, self.groups, np.int32)  # out of range: dropped
        slots[:len(rows)] = rows
        with jax.set_mesh(self.mesh):
            self.caches = self._prefill(self.parameters, self.caches, slots, batch.tokens, batch.positions, batch.valid,
                                        batch.rows, batch.features, pending, batch.following)
        self.length[list(rows)] = 0
        self._count(sum(len(p) - 1 for p in prompts))
        return [int(v) for v in batch.following[:len(rows)]]

    def extend(self, lanes: Sequence[tuple[int, int]], pending: Sequence[int], tokens: Sequence[Sequence[int]],
               images: Sequence[Sequence[str]], positions: Sequence[int], table: ImageTable) -> list[int]:
        """Appends tokens that the policy did not write to some lanes.

        Args:
            lanes: (group, member) of each.
            pending: each lane's pending token, run together with the new ones; the last new token becomes pending.
            tokens, images: the new tokens and the images among them.
            positions: each lane's rotary position of the pending token.
        Returns:
            the rotary position of each lane's new pending token.
        """
        if len(lanes) > (n := self.extend_lanes):
            parts = (slice(first, first + n) for first in range(0, len(lanes), n))
            return [position for p in parts for position in self.extend(
                lanes[p], pending[p], tokens[p], images[p], positions[p], table)]
        runs = [[p, *t[:-1]] for p, t in zip(pending, tokens)]
        batch = _pieces(runs, images, table, self.image_token, self.merge, n,
                        bucket(max(map(len, runs)), LENGTH_STEP), positions)
        where = np.full((2, n), self.groups, np.int32)  # out of range: dropped
        where[:, :len(lanes)] = np.array(lanes).T
        last = np.zeros(n, np.int32)
        last[:len(lanes)] = [t[-1] for t in tokens]
        with jax.set_mesh(self.mesh):
            self.caches = self._extend(self.parameters, self.caches, where, batch.tokens, batch.positions, batch.valid,
                                       batch.rows, batch.features, np.stack([last, batch.following]))
        for lane, run in zip(lanes, runs):
            self.length[lane] += len(run)
        self._count(sum(map(len, runs)))
        return [int(v) for v in batch.following[:len(lanes)]]

    def decode(self, active: Bool[np.ndarray, 'b g'], budget: Int[np.ndarray, 'b g'],
               seeds: Int[np.ndarray, 'b g']) -> Chunk:
        """Samples up to a chunk of tokens on the active lanes; a lane stops at a stop id or when its budget is used.

        Args:
            seeds: of each lane's trajectory. The draw depends on seed and place in the sequence only, so that a
                trajectory is the same whatever runs beside it and whenever its tools answer.
        """
        used = self._used(self.length[active].max())
        with jax.set_mesh(self.mesh):
            self.caches, chunk = self._decode(self.parameters, self.caches, active, budget.astype(np.int32),
                                              seeds.astype(np.uint32), used)
        chunk = Chunk(*(np.asarray(x) for x in chunk))
        self.length += chunk.count
        self._count(int(chunk.count.sum()))
        return chunk

    def room(self, lane: tuple[int, int]) -> int:
        """Tokens that still fit into a lane."""
        return self.suffix_capacity - int(self.length[lane])

    def _used(self, longest: int) -> int:
        """How much of the suffix cache a program reads: few sizes, so that short sequences do not pay for long ones."""
        return min(bucket(max(int(longest), 1), CACHE_STEP), self.suffix_capacity + self.chunk)

    def _count(self, run: int) -> None:
        self.tokens_run += run

    # Device side: the three programs.

    def _run(self, parameters, tokens, features, rows, positions, valid, contexts):
        policy = nnx.merge(self.graph, parameters)
        return policy, *policy.language(policy.embed(tokens, features, rows), positions, valid, contexts)

    def _prefill_program(self, parameters, caches: Caches, slots, tokens, positions, valid, rows, features, pending,
                         following) -> Caches:
        _, _, fresh = self._run(parameters, tokens[:, None], features, rows[:, None], positions[:, :, None],
                                valid[:, None], ())
        put = lambda old, new: old.at[:, slots].set(new, mode='drop')
        spread = lambda old, new: old.at[slots].set(jnp.broadcast_to(new[:, None], (len(slots), self.members)),
                                                    mode='drop')
        return Caches(KeysValues(*map(put, caches.prefix, fresh)),
                      caches.prefix_length.at[slots].set(valid.sum(1), mode='drop'), caches.suffix,
                      spread(caches.suffix_length, jnp.zeros_like(pending)), spread(caches.pending, pending),
                      spread(caches.position, following))

    def _extend_program(self, parameters, caches: Caches, where, tokens, positions, valid, rows, features,
                        tail) -> Caches:
        b, g = where
        take = jnp.minimum(b, self.groups - 1), jnp.minimum(g, self.members - 1)
        length = caches.suffix_length[take]
        prefix = Context(*(x[:, take[0]] for x in caches.prefix),
                         (jnp.arange(self.prompt_capacity) < caches.prefix_length[take[0]][:, None])[:, None])
        suffix = Context(*(x[:, take[0], take[1]][:, :, None] for x in caches.suffix),
                         (jnp.arange(caches.suffix.keys.shape[3]) < length[:, None])[:, None])
        _, _, fresh = self._run(parameters, tokens[:, None], features, rows[:, None], positions[:, :, None],
                                valid[:, None], (prefix, suffix))
        place = length[:, None] + jnp.arange(tokens.shape[1])
        place = jnp.where(valid, place, self.suffix_capacity + self.chunk)  # padding is dropped
        put = lambda old, new: old.at[:, b[:, None], g[:, None], place].set(new[:, :, 0], mode='drop')
        return caches._replace(suffix=KeysValues(*map(put, caches.suffix, fresh)),
                               suffix_length=caches.suffix_length.at[b, g].add(valid.sum(1), mode='drop'),
                               pending=caches.pending.at[b, g].set(tail[0], mode='drop'),
                               position=caches.position.at[b, g].set(tail[1], mode='drop'))

    def _decode_program(self, parameters, caches: Caches, active, budget, seeds, used) -> tuple[Caches, Chunk]:
        c, shape, s = self.chunk, (self.groups, self.members), self.sizes
        prefix = Context(*caches.prefix,
                         (jnp.arange(self.prompt_capacity) < caches.prefix_length[:, None])[:, None])
        suffix = Context(*(x[:, :, :, :used] for x in caches.suffix),
                         jnp.arange(used) < caches.suffix_length[..., None])
        keys = jax.vmap(jax.vmap(jax.random.key))(seeds)
        buffer = lambda dtype: jnp.zeros((*shape, c), dtype)

        def step(state):
            i, pending, live, count, kv, out = state
            recent = Context(*kv, jnp.arange(c) < count[..., None])
            position = caches.position + count
            policy, hidden, fresh = self._run(
                parameters, pending[..., None], None, None,
                jnp.broadcast_to(position[None, ..., None], (3, *shape, 1)), jnp.ones((*shape, 1), bool),
                (prefix, suffix, recent))
            token, log_prob, raw = self._sample(policy.logits(hidden[..., 0, :]), keys, position)
            put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, i, axis=3)
            out = tuple(jax.lax.dynamic_update_slice_in_dim(o, v[..., None].astype(o.dtype), i, axis=2)
                        for o, v in zip(out, (token, log_prob, raw)))
            count = count + live
            pending = jnp.where(live, token, pending)
            live = live & ~jnp.isin(token, self.stop) & (count < budget)
            return i + 1, pending, live, count, KeysValues(*map(put, kv, fresh)), out

        room = lambda: jnp.zeros((s.layers, *shape, c, s.kv_heads, s.head_width), caches.suffix.keys.dtype)
        start = (0, caches.pending, active & (budget > 0), jnp.zeros(shape, jnp.int32), KeysValues(room(), room()),
                 (buffer(jnp.int32), buffer(jnp.float32), buffer(jnp.float32)))
        _, pending, _, count, kv, out = jax.lax.while_loop(lambda st: (st[0] < c) & st[2].any(), step, start)
        # A lane's tokens of the chunk go behind its suffix; what stands behind `count` is overwritten later.
        write = jax.vmap(jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (at, 0, 0))))
        merged = KeysValues(*(jax.vmap(write, (0, 0, None))(o, n, caches.suffix_length)
                              for o, n in zip(caches.suffix, kv)))
        caches = caches._replace(suffix=merged, suffix_length=caches.suffix_length + count, pending=pending,
                                 position=caches.position + count)
        return caches, Chunk(*out, count)

    def _sample(self, logits, keys, position):
        """One token per lane, its log-prob under the sampled distribution and under the raw one."""
        raw = jax.nn.log_softmax(logits)
        allowed = jnp.where(self.suppressed, MASKED, logits)
        if self.temperature == 0:
            token = jnp.argmax(allowed, -1)
            used = jax.nn.log_softmax(allowed)
        else:
            used = jax.nn.log_softmax(allowed / self.temperature)
            draw = jax.vmap(jax.vmap(lambda k, p: jax.random.gumbel(jax.random.fold_in(k, p), logits.shape[-1:])))
            token = jnp.argmax(used + draw(keys, position), -1)
        pick = lambda x: jnp.take_along_axis(x, token[..., None], -1)[..., 0]
        return token.astype(jnp.int32), pick(used), pick(raw)


class _Pieces(NamedTuple):
    tokens: np.ndarray
    positions: np.ndarray
    valid: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    following: np.ndarray


def _pieces(runs, images, table: ImageTable, image_token: int, merge: int, count: int, length: int,
            starts) -> _Pieces:
    """Token runs with their images as padded arrays, and the position that follows each run."""
    features, places = feature_tables(images, table, 512, count)
    out = _Pieces(np.zeros((count, length), np.int32), np.zeros((3, count, length), np.int32),
                  np.zeros((count, length), bool), np.full((count, length), -1, np.int32), features,
                  np.zeros(count, np.int32))
    for i, (run, names, start, offsets) in enumerate(zip(runs, images, starts, places)):
        n = len(run)
        out.tokens[i, :n], out.valid[i, :n] = run, True
        out.positions[:, i, :n], out.following[i] = mrope_positions(
            np.asarray(run), [table.grids[name] for name in names], image_token, merge, start=start)
        out.rows[i, :n] = image_rows(run, names, offsets, image_token)
    return out
