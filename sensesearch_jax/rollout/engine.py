"""The sampler: prompts prefilled once per group, suffix caches per trajectory, decoding in compiled
chunks.

Lanes are a B × G grid: B groups in flight, G trajectories each. Every lane has one pending token,
the last of its sequence, whose keys and values are not computed yet. `prefill` opens rows, `extend`
appends a tool's response to some lanes, `decode` samples until every active lane stops or a chunk
is full. Shapes come from few buckets, so that after the first rollouts nothing compiles any more.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.batching.group_batch import ImageTable, feature_tables, image_rows
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.model.attention.kv_cache import MASKED, KVCache
from sensesearch_jax.model.qwen2_5_vl import Policy
from sensesearch_jax.model.rope import mrope_positions
from sensesearch_jax.model.text_decoder import KeysValues
from sensesearch_jax.rollout.sampling import Sampling, distribution, draw
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.mesh import constrain, is_abstract, mesh_of, platform, spec
from sensesearch_jax.runtime.threads import SharedProgram

PROMPT_STEP = 128
FEATURE_STEP = 512  # of the visual tokens that come with a pass
CACHE_STEP = 384  # of how much of the suffix cache decoding reads


TOKEN_AXES = KVCache(5, 4, None, 4, 4)  # of all layers' contexts


class Caches(NamedTuple):
    """All keys and values of the lanes in flight, every layer's; `*_length` say how much of each is
    real.
    """

    prefix: KVCache  # [L, B, 1, K, E, P] and [L, B, 1, K, P, E]
    prefix_length: Int[Array, ' b']
    suffix: KVCache  # [L, B, G, K, E, S] and [L, B, G, K, S, E]
    suffix_length: Int[Array, 'b g']
    pending: Int[Array, 'b g']  # the token to run next
    position: Int[Array, 'b g']  # its rotary position


class Chunk(NamedTuple):
    """What `decode` sampled: [B, G, C] each, the first `count` of a lane are real."""

    tokens: Int[np.ndarray, 'b g c']
    log_probs: Float[np.ndarray, 'b g c']  # under the distribution that was sampled from
    raw_log_probs: Float[np.ndarray, 'b g c']  # at temperature 1 and with no id suppressed
    count: Int[np.ndarray, 'b g']


class Where(NamedTuple):
    """A grid of lanes, R rows with W of their members each. What is out of range is not there."""

    rows: Int[np.ndarray, ' r'] | None  # None for all of them
    members: Int[np.ndarray, 'r w']


class Engine:
    """Holds the caches on the device and the compiled programs that work on them.

    Args:
        policy: gives structure and sizes; the parameters to sample with are set by
            `set_parameters`. A policy of mere shapes with their places (`abstract_policy`) gives an
            engine that can only `lower` its programs.
        groups, members: B and G.
        prompt_capacity, suffix_capacity: P and S in tokens; `chunk` more are kept free at the end
            of S.
        chunk: most tokens that `decode` samples between two looks of the host.
        prefill_rows, extend_lanes: rows and lanes that one pass of prefill or extend takes; fewer
            are padded, more go in several passes, so that each has one shape. As few lanes are also
            decoded apart from the others, and where many lanes wait, so few of each row as pay
            best: the half of its members, or a quarter, ….
        extend_tokens: that one pass of extend takes of a lane; a longer response goes in pieces.
        stop: ids that end a turn.
        suppressed: ids that are never sampled (vision placeholders).
        sampling: how tokens are drawn.
        cache_dtype: of the keys and values that wait in the caches: 'policy', the policy's own, or
            'int8', a quarter of float32's bytes and half of bfloat16's.

    Raises:
        ValueError: an unknown cache_dtype.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        groups: int,
        members: int,
        prompt_capacity: int,
        suffix_capacity: int,
        chunk: int,
        stop: Sequence[int],
        suppressed: Sequence[int],
        sampling: Sampling = Sampling(),
        prefill_rows: int = 4,
        extend_lanes: int = 16,
        extend_tokens: int = 256,
        cache_dtype: str = 'policy',
    ):
        if cache_dtype not in ('policy', 'int8'):
            raise ValueError(f"cache_dtype '{cache_dtype}' is unknown; choose 'policy' or 'int8'.")
        self.quantized = cache_dtype == 'int8'
        self.caches: Caches | None = None
        self.graph, parameters = nnx.split(policy)
        self.set_parameters(parameters)
        self.sizes = policy.sizes.language
        self.image_token, self.merge = policy.sizes.image_token, policy.sizes.vision.merge_size
        self.groups, self.members, self.chunk, self.sampling = (
            groups,
            members,
            chunk,
            sampling.check(),
        )
        self.prompt_capacity, self.suffix_capacity = prompt_capacity, suffix_capacity
        self.prefill_rows = min(prefill_rows, groups)
        self.extend_lanes = min(extend_lanes, groups * members)
        self.extend_tokens = min(extend_tokens, suffix_capacity + chunk)
        self.stop = jnp.array(list(stop), jnp.int32)
        self.suppressed = np.zeros(self.sizes.vocabulary, bool)
        self.suppressed[list(suppressed)] = True
        self.length = np.zeros((groups, members), np.int64)  # the host's copy of suffix lengths
        self.passed_over = np.zeros(
            (groups, members), np.int64
        )  # chunks in a row that an active lane had no part in
        self.tokens_run = 0  # through the language model, padding aside
        program = functools.partial(
            jax.jit, donate_argnums=1, compiler_options=compiler_options(self.mesh)
        )
        self._prefill = SharedProgram(program(self._prefill_program))
        self._extend = SharedProgram(program(self._extend_program, static_argnums=9))
        self._decode = SharedProgram(program(self._decode_program, static_argnums=6))
        self._fresh = jax.jit(self._zeros, static_argnums=0)
        if is_abstract(parameters):
            self.caches = self._empty()

    def twin(self) -> Engine:
        """Another engine with caches of its own and the same compiled programs, to be used from
        another thread.
        """
        other = copy.copy(self)
        other.length, other.passed_over = np.zeros_like(self.length), np.zeros_like(self.length)
        other.tokens_run, other.caches = 0, None
        return other

    def set_parameters(self, parameters: nnx.State) -> None:
        """New weights of the same structure.

        Nothing compiles again where their dtype and mesh are those of the last ones. Else the
        programs do, when they are next used, and the caches are made anew with the next prefill:
        what the lanes held is gone.
        """
        before = (self.dtype, self.mesh) if self.caches is not None else None
        self.parameters = parameters
        # Programs of a policy that is cut over devices must know of them: kernels run per shard.
        self.mesh = mesh_of(parameters)
        if before != (self.dtype, self.mesh):
            self.release()

    @property
    def dtype(self) -> np.dtype:
        """Of the weights, and so of all that is computed with them: activations, keys and values,
        visual features.
        """
        return _dtype(self.parameters)

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return sum(f.program._cache_size() for f in (self._prefill, self._extend, self._decode))

    def _zeros(self, dtype: np.dtype) -> Caches:
        s, b, g = self.sizes, self.groups, self.members

        def room(lanes, *shape):
            return jnp.zeros((s.layers, b, lanes, s.kv_heads, *shape), dtype)

        def pair(lanes, tokens):
            return self._stored(
                KVCache(room(lanes, s.head_width, tokens), room(lanes, tokens, s.head_width), None)
            )

        def zeros(*shape):
            return jnp.zeros(shape, jnp.int32)

        return _held(
            Caches(
                pair(1, self.prompt_capacity),
                zeros(b),
                pair(g, self.suffix_capacity + self.chunk),
                zeros(b, g),
                zeros(b, g),
                zeros(b, g),
            )
        )

    def _empty(self) -> Caches:
        """Caches as the programs leave them: else these would compile for fresh ones as well."""
        if is_abstract(self.parameters):

            def place(x):
                return x.update(
                    sharding=NamedSharding(self.mesh, spec(_axes(x), x.shape, self.mesh))
                )

            return jax.tree.map(place, jax.eval_shape(functools.partial(self._zeros, self.dtype)))
        with jax.set_mesh(self.mesh):
            return self._fresh(self.dtype)

    def lower(self, features: int, used: int) -> dict[str, jax.stages.Lowered]:
        """The programs of prefill and decode, not yet compiled and never run: for devices that are
        not here too.

        Args:
            features: rows of a prompt's table of visual tokens.
            used: tokens of the suffix caches that decoding reads.
        """
        n, p, lanes = self.prefill_rows, self.prompt_capacity, (self.groups, self.members)

        def shape(*sizes, dtype=jnp.int32):
            return jax.ShapeDtypeStruct(sizes, dtype)

        prompts = shape(n, p), shape(3, n, p), shape(n, p, dtype=bool), shape(n, p)
        table = shape(n, features, self.sizes.width, dtype=self.dtype)
        with jax.set_mesh(self.mesh):
            prefill = self._prefill.program.lower(
                self.parameters, self.caches, shape(n), *prompts, table, shape(n), shape(n)
            )
            decode = self._decode.program.lower(
                self.parameters,
                self.caches,
                None,
                shape(*lanes, dtype=bool),
                shape(*lanes),
                shape(*lanes, dtype=jnp.uint32),
                used,
            )
            return {'prefill': prefill, 'decode': decode}

    def warm_up(self) -> None:
        """Compiles extend and decode in all their sizes; prefill compiles with the first prompt of
        a size.

        Runs them on no lane. Without it a size that is rare compiles whenever it is first met.
        """
        if self.caches is None:
            self.caches = self._empty()
        n, t, lanes = self.extend_lanes, self.extend_tokens, np.arange(self.groups * self.members)
        grids = [
            None,
            *(
                Where(None, np.tile(np.arange(w, dtype=np.int32), (self.groups, 1)))
                for w in self._widths()[1:]
            ),
        ]
        if n < len(lanes):
            grids.append(self._where([]))

        def zeros(*shape, dtype=np.int32):
            return np.zeros(shape, dtype)

        table = zeros(n, FEATURE_STEP, self.sizes.width, dtype=self.dtype)
        with jax.set_mesh(self.mesh):
            for used in sorted(
                {self._used(length) for length in range(1, self.suffix_capacity + self.chunk + 1)}
            ):
                self.caches = self._extend(
                    self.parameters,
                    self.caches,
                    self._where([]),
                    zeros(n, t),
                    zeros(3, n, t),
                    zeros(n, t, dtype=bool),
                    zeros(n, t) - 1,
                    table,
                    zeros(2, n),
                    used,
                )
                for where in grids:
                    shape = (self.groups, self.members) if where is None else where.members.shape
                    self.caches, _ = self._decode(
                        self.parameters,
                        self.caches,
                        where,
                        zeros(*shape, dtype=bool),
                        zeros(*shape),
                        zeros(*shape, dtype=np.uint32),
                        used,
                    )

    def release(self) -> None:
        """Gives the caches' memory back, and every lane's content with it, until the next prefill."""
        self.caches = None

    # Host side: arrays out of token lists, in few shapes.

    def prefill(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        images: Sequence[Sequence[str]],
        table: ImageTable,
    ) -> list[int]:
        """Opens rows with new prompts and empties their members' suffixes. Returns each row's next
        position.

        Raises:
            ValueError: a prompt longer than the capacity.
        """
        if self.caches is None:
            self.caches = self._empty()
        longest = max(map(len, prompts)) - 1
        if longest > self.prompt_capacity:
            raise ValueError(
                f'A prompt of {longest + 1} tokens does not fit into {self.prompt_capacity}; raise '
                'rollout.prompt_capacity or lower max_pixels.'
            )
        if len(rows) > (n := self.prefill_rows):
            return [
                position
                for first in range(0, len(rows), n)
                for position in self.prefill(
                    rows[first : first + n],
                    prompts[first : first + n],
                    images[first : first + n],
                    table,
                )
            ]
        batch = self._runs(
            [p[:-1] for p in prompts],
            images,
            table,
            n,
            min(bucket(longest, PROMPT_STEP, FINE), self.prompt_capacity),
            [0] * len(prompts),
        )
        pending = np.zeros(n, np.int32)
        pending[: len(rows)] = [p[-1] for p in prompts]
        slots = np.full(n, self.groups, np.int32)  # out of range: dropped
        slots[: len(rows)] = rows
        with jax.set_mesh(self.mesh):
            self.caches = self._prefill(
                self.parameters,
                self.caches,
                slots,
                batch.tokens,
                batch.positions,
                batch.valid,
                batch.rows,
                batch.features,
                pending,
                batch.following,
            )
        self.length[list(rows)] = 0
        self._count(sum(len(p) - 1 for p in prompts))
        return [int(v) for v in batch.following[: len(rows)]]

    def extend(
        self,
        lanes: Sequence[tuple[int, int]],
        pending: Sequence[int],
        tokens: Sequence[Sequence[int]],
        images: Sequence[Sequence[str]],
        positions: Sequence[int],
        table: ImageTable,
    ) -> list[int]:
        """Appends tokens that the policy did not write to some lanes.

        Args:
            lanes: (group, member) of each.
            pending: each lane's pending token, run together with the new ones; the last new token
                becomes pending.
            tokens, images: the new tokens and the images among them.
            positions: each lane's rotary position of the pending token.

        Returns:
            the rotary position of each lane's new pending token.
        """
        runs = [[p, *t[:-1]] for p, t in zip(pending, tokens)]
        longest = -(-max(map(len, runs)) // self.extend_tokens) * self.extend_tokens
        batch = self._runs(runs, images, table, len(runs), longest, positions)
        last = np.array([t[-1] for t in tokens], np.int32)
        done = np.zeros(len(runs), int)
        while (left := np.array(list(map(len, runs))) - done).any():
            # Those that need most passes go first, so that there are as few as can be.
            now = np.argsort(-left, kind='stable')[: self.extend_lanes]
            now = now[left[now] > 0]
            self._extend_piece([lanes[i] for i in now], batch, last, now, done[now])
            done[now] += np.minimum(left[now], self.extend_tokens)
        self._count(sum(map(len, runs)))
        return [int(v) for v in batch.following]

    def _extend_piece(
        self,
        lanes: Sequence[tuple[int, int]],
        batch: _Runs,
        last: Int[np.ndarray, ' r'],
        chosen: Int[np.ndarray, ' n'],
        first: Int[np.ndarray, ' n'],
    ) -> None:
        """One pass: of each chosen run, for its lane, the tokens from `first` on."""
        spare = self.extend_lanes - len(lanes)
        chosen, first = (np.pad(x, (0, spare)) for x in (chosen, first))
        at = chosen[:, None], first[:, None] + np.arange(self.extend_tokens)
        valid = batch.valid[at] & (np.arange(self.extend_lanes) < len(lanes))[:, None]
        with jax.set_mesh(self.mesh):
            self.caches = self._extend(
                self.parameters,
                self.caches,
                self._where(lanes),
                batch.tokens[at],
                batch.positions[:, *at],
                valid,
                batch.rows[at],
                batch.features[chosen],
                np.stack([last[chosen], batch.following[chosen]]),
                self._used(max(self.length[lane] for lane in lanes)),
            )
        for lane, count in zip(lanes, valid.sum(1)):
            self.length[lane] += int(count)

    def decode(
        self,
        active: Bool[np.ndarray, 'b g'],
        budget: Int[np.ndarray, 'b g'],
        seeds: Int[np.ndarray, 'b g'],
    ) -> Chunk:
        """Samples up to a chunk of tokens on active lanes; a lane stops at a stop id or when its
        budget is used.

        Where many lanes wait for something, some active ones may get nothing this time; they come
        first the next time.

        Args:
            seeds: of each lane's trajectory. The draw depends on seed and place in the sequence
                only, so that a trajectory is the same whatever runs beside it and whenever its
                tools answer.
        """
        at, where = self._taking_part(active)
        used = self._used(self.length[at][active[at]].max())
        operands = [x[at] for x in (active, budget.astype(np.int32), seeds.astype(np.uint32))]
        if where is not None:  # those missing are out of range
            operands = [np.pad(x, ((0, len(where.members) - len(x)), (0, 0))) for x in operands]
        with jax.set_mesh(self.mesh):
            self.caches, sampled = self._decode(
                self.parameters, self.caches, where, *operands, used
            )
        chunk = Chunk(*(np.zeros((*active.shape, *x.shape[2:]), x.dtype) for x in sampled))
        for whole, part in zip(chunk, sampled):
            whole[at] = np.asarray(part)[: len(at[0])]
        self.passed_over = np.where(active, self.passed_over + 1, 0)
        self.passed_over[at] = 0
        self.length += chunk.count
        self._count(int(chunk.count.sum()))
        return chunk

    def _taking_part(
        self, active: Bool[np.ndarray, 'b g']
    ) -> tuple[tuple[np.ndarray, np.ndarray], Where | None]:
        """The lanes that decode now: as an index of a [R, W] grid, and as the program takes them.

        The last few lanes should not pay for the caches of all, nor those that go on for those that
        wait.
        """
        if active.sum() <= self.extend_lanes < active.size:
            few = np.argwhere(active)
            return (few[:, :1], few[:, 1:]), self._where(few)
        # Of a step's time that goes with the number of lanes; on an accelerator most goes into
        # reading the parameters.
        share = 0.9 if platform() == 'cpu' else 0.2

        def gain(width):
            return np.minimum(active.sum(1), width).sum() / (
                1 - share + share * width / self.members
            )

        width = max(self._widths(), key=gain)
        rows = np.arange(self.groups)[:, None]
        if width == self.members:
            return (rows, np.arange(self.members)[None]), None
        members = np.argsort(np.where(active, -self.passed_over, 1), axis=1, kind='stable')[
            :, :width
        ]
        return (rows, members), Where(None, members.astype(np.int32))

    def _widths(self) -> list[int]:
        """So many members of each row may decode apart from the others: all of them, the half, a
        quarter, ….

        Fewer would be as few lanes as are decoded apart from the others anyway.
        """
        widths = [self.members]
        while not widths[-1] % 2 and self.groups * widths[-1] // 2 > self.extend_lanes:
            widths.append(widths[-1] // 2)
        return widths

    def room(self, lane: tuple[int, int]) -> int:
        """Tokens that still fit into a lane."""
        return self.suffix_capacity - int(self.length[lane])

    def _used(self, longest: int) -> int:
        """How much of the suffix cache a program reads: few sizes, so that short sequences do not
        pay for long ones.
        """
        size, whole = bucket(max(int(longest), 1), CACHE_STEP), self.suffix_capacity + self.chunk
        return size if size < 0.9 * whole else whole  # nearly all is not worth a program of its own

    def _where(self, lanes: Sequence[tuple[int, int]]) -> Where:
        """At most `extend_lanes` lanes, each as a row of one member; the rest is out of range, and
        so dropped.
        """
        where = np.full((2, self.extend_lanes), self.groups, np.int32)
        where[:, : len(lanes)] = np.array(lanes).T
        return Where(where[0], where[1][:, None])

    def _runs(self, runs, images, table: ImageTable, count: int, length: int, starts) -> _Runs:
        """Token runs with their images as `count` padded arrays, and the position that follows each
        run.
        """
        # Runs without an image have the programs of those with one.
        features, places = feature_tables(
            images, table, FEATURE_STEP, count, self.sizes.width, self.dtype
        )
        out = _Runs(
            np.zeros((count, length), np.int32),
            np.zeros((3, count, length), np.int32),
            np.zeros((count, length), bool),
            np.full((count, length), -1, np.int32),
            features,
            np.zeros(count, np.int32),
        )
        for i, (run, names, start, offsets) in enumerate(zip(runs, images, starts, places)):
            n = len(run)
            out.tokens[i, :n], out.valid[i, :n] = run, True
            out.positions[:, i, :n], out.following[i] = mrope_positions(
                np.asarray(run),
                [table.grids[name] for name in names],
                self.image_token,
                self.merge,
                start=start,
            )
            out.rows[i, :n] = image_rows(run, names, offsets, self.image_token)
        return out

    def _count(self, run: int) -> None:
        self.tokens_run += run

    # Device side: the three programs.

    def _run(self, parameters, tokens, features, rows, positions, valid, contexts):
        policy = nnx.merge(self.graph, parameters)
        return policy.language(policy.embed(tokens, features, rows), positions, valid, contexts)

    def _prefill_program(
        self,
        parameters,
        caches: Caches,
        slots,
        tokens,
        positions,
        valid,
        rows,
        features,
        pending,
        following,
    ) -> Caches:
        _, fresh = self._run(
            parameters,
            tokens[:, None],
            features,
            rows[:, None],
            positions[:, :, None],
            valid[:, None],
            (),
        )
        # A slot's length masks what is behind its prompt's end.
        free = self.prompt_capacity - tokens.shape[1]

        def whole(new, axis):
            return jnp.pad(new, [(0, free if i == axis else 0) for i in range(new.ndim)])

        def put(axis, old, new):
            return old.at[:, slots].set(whole(new, axis), mode='drop')

        def spread(old, new):
            return old.at[slots].set(
                jnp.broadcast_to(new[:, None], (len(slots), self.members)), mode='drop'
            )

        return _held(
            Caches(
                _by_field(put, caches.prefix, self._stored(_by_head(fresh))),
                caches.prefix_length.at[slots].set(valid.sum(1), mode='drop'),
                caches.suffix,
                spread(caches.suffix_length, jnp.zeros_like(pending)),
                spread(caches.pending, pending),
                spread(caches.position, following),
            )
        )

    def _extend_program(
        self,
        parameters,
        caches: Caches,
        where,
        tokens,
        positions,
        valid,
        rows,
        features,
        tail,
        used,
    ) -> Caches:
        b, g = self._places(where)
        take, length, contexts = self._lanes(caches, where, used)
        _, fresh = self._run(
            parameters,
            tokens[:, None],
            features,
            rows[:, None],
            positions[:, :, None],
            valid[:, None],
            contexts,
        )
        inside = valid & (b < self.groups)[:, None]
        return _held(
            caches._replace(
                suffix=_write(caches.suffix, take, length, self._stored(_by_head(fresh)), inside),
                suffix_length=caches.suffix_length.at[b, g].add(valid.sum(1), mode='drop'),
                pending=caches.pending.at[b, g].set(tail[0], mode='drop'),
                position=caches.position.at[b, g].set(tail[1], mode='drop'),
            )
        )

    def _places(self, where: Where | None) -> tuple[Int[Array, ' n'], Int[Array, ' n']]:
        """Row and member of each lane of a grid, or of all lanes."""
        if where is None:
            where = Where(
                None, jnp.broadcast_to(jnp.arange(self.members), (self.groups, self.members))
            )
        rows = jnp.arange(self.groups) if where.rows is None else where.rows
        return jnp.repeat(rows, where.members.shape[1]), where.members.ravel()

    def _lanes(self, caches: Caches, where: Where | None, used):
        """The places of a grid's lanes [N], their lengths [N] and their contexts; those out of
        range repeat.
        """
        b, g = take = tuple(
            jnp.minimum(x, most - 1)
            for x, most in zip(self._places(where), caches.suffix_length.shape)
        )
        prefix, prefix_length, suffix = (
            caches.prefix,
            caches.prefix_length,
            _first(caches.suffix, used),
        )
        length = caches.suffix_length[take]
        if where is not None:

            def grid(x):
                return x.reshape(where.members.shape)

            if where.rows is not None:
                rows = grid(b)[:, 0]
                prefix, prefix_length = (
                    jax.tree.map(lambda x: x[:, rows], prefix),
                    prefix_length[rows],
                )
            suffix = jax.tree.map(lambda x: x[:, grid(b), grid(g)], suffix)
        prefix = prefix._replace(
            valid=(jnp.arange(self.prompt_capacity) < prefix_length[:, None])[:, None]
        )
        suffix = suffix._replace(
            valid=jnp.arange(used) < length.reshape(suffix.keys.shape[1:3])[..., None]
        )
        return take, length, (prefix, suffix)

    def _stored(self, fresh: KVCache) -> KVCache:
        """Keys and values as the caches hold them."""
        return fresh.quantized() if self.quantized else fresh

    def _decode_program(
        self, parameters, caches: Caches, where, active, budget, seeds, used
    ) -> tuple[Caches, Chunk]:
        """`where`: a grid of lanes, or None for all; the other operands have its shape."""
        c, shape, s = self.chunk, active.shape, self.sizes
        lanes, length, contexts = self._lanes(caches, where, used)
        first, place = (x[lanes].reshape(shape) for x in (caches.pending, caches.position))
        policy = nnx.merge(self.graph, parameters)
        fixed = policy.language.unstack(contexts)
        keys = jax.vmap(jax.vmap(jax.random.key))(seeds)

        def buffer(dtype):
            return jnp.zeros((*shape, c), dtype)

        def step(state):
            i, pending, live, count, kv, out = state
            sampled = jnp.arange(c) < count[..., None]
            position = place + count
            tokens = policy.embed(pending[..., None], None, None)
            hidden, fresh = policy.language.run_unstacked(
                tokens,
                jnp.broadcast_to(position[None, ..., None], (3, *shape, 1)),
                jnp.ones((*shape, 1), bool),
                fixed,
                tuple(layer._replace(valid=sampled) for layer in kv),
            )
            token, log_prob, raw = self._sample(policy.logits(hidden[..., 0, :]), keys, position)

            def put(axis, old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new, i, axis)

            kv = tuple(_by_field(put, layer, _by_head(new)) for layer, new in zip(kv, fresh))
            out = tuple(
                jax.lax.dynamic_update_slice_in_dim(o, v[..., None].astype(o.dtype), i, axis=2)
                for o, v in zip(out, (token, log_prob, raw))
            )
            count = count + live
            pending = jnp.where(live, token, pending)
            live = live & ~jnp.isin(token, self.stop) & (count < budget)
            return i + 1, pending, live, count, kv, out

        def room(*sizes):
            return jnp.zeros((1, *shape, s.kv_heads, *sizes), _dtype(parameters))

        # What is sampled is kept by layer: a layer's part of one array would be copied for every
        # token.
        start = (
            0,
            first,
            active & (budget > 0),
            jnp.zeros(shape, jnp.int32),
            (KVCache(room(s.head_width, c), room(c, s.head_width), None),) * s.layers,
            (buffer(jnp.int32), buffer(jnp.float32), buffer(jnp.float32)),
        )
        _, pending, _, count, kv, out = jax.lax.while_loop(
            lambda st: (st[0] < c) & st[2].any(), step, start
        )

        def stacked(*layers):
            return jnp.concatenate([x.reshape(1, -1, 1, *x.shape[3:]) for x in layers])

        merged = _write(
            caches.suffix,
            lanes,
            length,
            self._stored(jax.tree.map(stacked, *kv)),
            jnp.arange(c) < count.reshape(-1, 1),
        )
        b, g = self._places(where)
        caches = _held(
            caches._replace(
                suffix=merged,
                suffix_length=caches.suffix_length.at[b, g].add(count.ravel(), mode='drop'),
                pending=caches.pending.at[b, g].set(pending.ravel(), mode='drop'),
                position=caches.position.at[b, g].add(count.ravel(), mode='drop'),
            )
        )
        return caches, Chunk(*out, count)

    def _sample(self, logits, keys, position):
        """One token per lane, its log-prob under the sampled distribution and under the raw one."""
        raw = jax.nn.log_softmax(logits)
        allowed = jnp.where(self.suppressed, MASKED, logits)
        used = distribution(allowed, self.sampling)
        if self.sampling.temperature == 0:
            token = jnp.argmax(used, -1)
        else:

            def lane(key, place, used):
                return draw(jax.random.fold_in(key, place), used)

            token = jax.vmap(jax.vmap(lane))(keys, position, used)

        def pick(x):
            return jnp.take_along_axis(x, token[..., None], -1)[..., 0]

        return token.astype(jnp.int32), pick(used), pick(raw)


def _dtype(parameters: nnx.State) -> np.dtype:
    """What a policy with these parameters computes in: each layer takes its input's dtype, the
    first its embeddings'.
    """
    return np.dtype(parameters['language']['embedding'].dtype)


def _axes(x: jax.Array) -> tuple[str | None, ...]:
    """How an array of the caches lies on a mesh: keys and values by head, the rest whole.

    Not by row: every pass writes rows of its choice, for which the compiler would fetch all of
    them.
    """
    return tuple('kv_heads' if x.ndim >= 5 and i == 3 else None for i in range(x.ndim))


def _held(caches: Caches) -> Caches:
    """The caches where they were before the program, so that the next one finds them as it was
    compiled for.
    """
    return jax.tree.map(lambda x: constrain(x, _axes(x)), caches)


def _by_head(fresh: KeysValues) -> KVCache:
    """What a forward pass left behind, in the caches' order of axes."""
    return KVCache.of(fresh.keys, fresh.values, None)


def _by_field(f: Callable[..., Array], *caches: KVCache) -> KVCache:
    """`f` of the axis of tokens and the arrays, for keys, for values and for their scales if there
    are any.
    """
    return KVCache(
        *(
            None if parts[0] is None else f(axis, *parts)
            for axis, *parts in zip(TOKEN_AXES, *caches)
        )
    )


def _first(cache: KVCache, length: int) -> KVCache:
    """The cache's first tokens."""
    return _by_field(lambda axis, x: jax.lax.slice_in_dim(x, 0, length, axis=axis), cache)


def _write(
    cache: KVCache,
    lanes: tuple[Int[Array, ' n'], Int[Array, ' n']],
    starts: Int[Array, ' n'],
    fresh: KVCache,
    valid: Bool[Array, 'n t'],
) -> KVCache:
    """Puts each lane's new tokens, `fresh` [L, N, 1, …], behind its `starts` first ones; only valid
    ones change anything.

    One lane after the other, in place: a scatter of single tokens takes many times as long on a
    CPU.
    """
    tokens, capacity = valid.shape[1], cache.keys.shape[-1]

    def lane(i, cache):
        at = jnp.minimum(starts[i], capacity - tokens)  # a slice that would stand out is moved in …
        shift = starts[i] - at  # … and its content moved back

        def put(axis, old, new):
            place = tuple(
                {1: lanes[0][i], 2: lanes[1][i], axis: at}.get(a, 0) for a in range(old.ndim)
            )
            new = jnp.roll(jax.lax.dynamic_slice_in_dim(new, i, 1, axis=1), shift, axis)
            mask = jnp.expand_dims(jnp.roll(valid[i], shift), tuple(range(1, old.ndim - axis)))
            before = jax.lax.dynamic_slice(old, place, new.shape)
            return jax.lax.dynamic_update_slice(old, jnp.where(mask, new, before), place)

        return _by_field(put, cache, fresh)

    return jax.lax.fori_loop(0, len(starts), lane, cache)


class _Runs(NamedTuple):
    tokens: np.ndarray
    positions: np.ndarray
    valid: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    following: np.ndarray
