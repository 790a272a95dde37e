"""The sampler's engine: prompts prefilled once per group, suffix caches per trajectory, decoding in
compiled chunks.

Lanes are a B × G grid: B groups in flight, G trajectories each. Every lane has one pending token,
the last of its sequence, whose keys and values are not computed yet. `prefill` opens rows, `extend`
appends a tool's response to some lanes, `decode` samples until every active lane stops or a chunk
is full. Shapes come from few buckets, so that after the first rollouts nothing compiles any more.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from sensesearch_jax.batching.group_batch import ImageTable, feature_tables, image_rows
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.rope import mrope_positions
from sensesearch_jax.rollout.caches import CacheLayout, Caches, LaneGrid
from sensesearch_jax.rollout.lane_choice import grid_shapes, lanes_to_decode
from sensesearch_jax.rollout.programs import Chunk, Programs, TokenRuns, compute_dtype
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.mesh import is_abstract, mesh_of, platform
from sensesearch_jax.runtime.threads import LAUNCHING

PROMPT_STEP = 128
FEATURE_STEP = 512  # of the visual tokens that come with a pass
CACHE_STEP = 384  # of how much of the suffix cache decoding reads


class Engine:
    """Holds the caches on the device and the compiled programs that work on them.

    Args:
        policy: gives structure and sizes; the parameters to sample with are set by
            `set_parameters`. A policy of mere shapes with their places (`abstract_policy`) gives an
            engine that can only `lower` its programs.
        groups, members: B and G.
        prompt_capacity, suffix_capacity: P and S in tokens; `chunk` more are kept free at the end
            of S.
        chunk: most tokens that one call of `decode` samples for a lane.
        prefill_rows, extend_lanes: rows and lanes that one pass of prefill or extend takes; fewer
            are padded, more go in several passes, so that each has one shape. As few lanes are also
            decoded apart from the others, and where many lanes wait, as many as pay best: the half of
            all, or a quarter, … (`lane_choice`).
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
        self.caches: Caches | None = None
        self.version: int | None = None  # of the parameters
        graph, parameters = nnx.split(policy)
        self.set_parameters(parameters)
        self.sizes = policy.sizes.language
        self.feature_width = policy.sizes.vision.feature_width
        self.image_token, self.merge = policy.sizes.image_token, policy.sizes.vision.merge_size
        self.groups, self.members, self.chunk = groups, members, chunk
        self.prompt_capacity, self.suffix_capacity = prompt_capacity, suffix_capacity
        self.prefill_rows = min(prefill_rows, groups)
        self.extend_lanes = min(extend_lanes, groups * members)
        self.extend_tokens = min(extend_tokens, suffix_capacity + chunk)
        self.length = np.zeros((groups, members), np.int64)  # the host's copy of suffix lengths
        # chunks in a row that an active lane had no part in
        self.passed_over = np.zeros((groups, members), np.int64)
        self.tokens_run = 0  # through the language model, padding aside
        self.layout = CacheLayout(
            self.sizes,
            groups,
            members,
            prompt_capacity,
            suffix_capacity + chunk,
            cache_dtype == 'int8',
        )
        never = np.zeros(self.sizes.vocabulary, bool)
        never[list(suppressed)] = True
        programs = Programs(graph, self.layout, chunk, tuple(stop), never, sampling.check())
        self._prefill, self._extend, self._decode = programs.compiled(self.mesh)
        self._zeros = jax.jit(self.layout.zeros, static_argnums=0)
        if is_abstract(parameters):
            self.caches = self._empty()

    def twin(self) -> Engine:
        """Another engine with its own caches and the same programs, for use from another thread;
        with parameters that lie elsewhere, on other devices.
        """
        other = copy.copy(self)
        other.length, other.passed_over = np.zeros_like(self.length), np.zeros_like(self.length)
        other.tokens_run, other.caches = 0, None
        return other

    def set_parameters(self, parameters: nnx.State, version: int | None = None) -> None:
        """New weights of the same structure, with their version for the record.

        Nothing compiles again where their dtype and mesh are those of the last ones. Else the
        programs do, when they are next used, and the caches are made anew with the next prefill:
        what the lanes held is gone.
        """
        before = (self.dtype, self.mesh) if self.caches is not None else None
        self.parameters, self.version = parameters, version
        # Programs of a sharded policy must know its mesh: kernels run per shard.
        self.mesh = mesh_of(parameters)
        if before != (self.dtype, self.mesh):
            self.caches = None

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the weights, and so of activations, keys and values and visual features."""
        return compute_dtype(self.parameters)

    @property
    def compiles(self) -> int:
        """Programs compiled so far."""
        return sum(f.program._cache_size() for f in (self._prefill, self._extend, self._decode))

    def _empty(self) -> Caches:
        """Caches as the programs leave them: else these would compile for fresh ones as well."""
        if is_abstract(self.parameters):
            return self.layout.abstract(self.dtype, self.mesh)
        with jax.set_mesh(self.mesh), LAUNCHING:
            return self._zeros(self.dtype)

    def lower(self, features: int, used: int) -> dict[str, jax.stages.Lowered]:
        """The programs of prefill, extend and decode, not yet compiled and never run: for devices
        that are not here too.

        Args:
            features: rows of a prompt's table of visual tokens, and of a tool response's.
            used: tokens of the suffix caches that extend and decode read.
        """
        n, m, lanes = self.prefill_rows, self.extend_lanes, (self.groups, self.members)

        def shape(*sizes, dtype=jnp.int32):
            return jax.ShapeDtypeStruct(sizes, dtype)

        def runs(*of):
            table = shape(of[0], features, self.feature_width, dtype=self.dtype)
            places = shape(*of), shape(3, *of), shape(*of, dtype=bool), shape(*of)
            return TokenRuns(*places, table, shape(of[0]))

        with jax.set_mesh(self.mesh):
            prefill = self._prefill.program.lower(
                self.parameters, self.caches, shape(n), runs(n, self.prompt_capacity), shape(n)
            )
            extend = self._extend.program.lower(
                self.parameters,
                self.caches,
                LaneGrid(shape(m), shape(m, 1)),
                runs(m, self.extend_tokens),
                shape(m),
                used,
            )
            sampled = shape(*lanes, dtype=bool), shape(*lanes), shape(*lanes, dtype=jnp.uint32)
            decode = self._decode.program.lower(self.parameters, self.caches, None, *sampled, used)
            return {'prefill': prefill, 'extend': extend, 'decode': decode}

    def warm_up(self) -> None:
        """Compiles extend and decode in all their sizes; prefill compiles with the first prompt of
        a size.

        Runs them on no lane. Without it a size that is rare compiles whenever it is first met.
        """
        if self.caches is None:
            self.caches = self._empty()
        n, t = self.extend_lanes, self.extend_tokens
        few = LaneGrid.of([], n, self.groups)
        shapes = grid_shapes(self.groups, self.members, n, platform())[1:]
        grids = [None, *(self._any_lanes(*shape) for shape in shapes)]

        def zeros(*shape, dtype=np.int32):
            return np.zeros(shape, dtype)

        table = zeros(n, FEATURE_STEP, self.feature_width, dtype=self.dtype)
        runs = TokenRuns(
            zeros(n, t), zeros(3, n, t), zeros(n, t, dtype=bool), zeros(n, t) - 1, table, zeros(n)
        )
        lengths = range(1, self.suffix_capacity + self.chunk + 1)
        with jax.set_mesh(self.mesh):
            for used in sorted({self._used(length) for length in lengths}):
                self.caches = self._extend(self.parameters, self.caches, few, runs, zeros(n), used)
                for grid in grids:
                    shape = (self.groups, self.members) if grid is None else grid.members.shape
                    idle = zeros(*shape, dtype=bool), zeros(*shape), zeros(*shape, dtype=np.uint32)
                    self.caches, _ = self._decode(self.parameters, self.caches, grid, *idle, used)

    def _any_lanes(self, rows: int, width: int) -> LaneGrid:
        if width == 1:
            return LaneGrid.of([], rows, self.groups)
        return LaneGrid(None, np.tile(np.arange(width, dtype=np.int32), (rows, 1)))

    def release(self) -> None:
        """Gives the memory of weights and caches back, until the next `set_parameters`.

        What the lanes held is gone.
        """
        self.caches = self.parameters = None

    def prefill(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        images: Sequence[Sequence[str]],
        table: ImageTable,
    ) -> list[int]:
        """Opens rows with new prompts and empties their members' suffixes.

        Args:
            rows: of the grid of lanes, one for each prompt.
            prompts: token ids, image tokens included.
            images: the names of each prompt's images, in their order in the prompt.
            table: grids and features of the images.

        Returns:
            the rotary position of each prompt's last token, which is pending.

        Raises:
            ValueError: a prompt longer than the capacity, or image tokens that are not exactly
                those of its images.
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
            passes = [slice(first, first + n) for first in range(0, len(rows), n)]
            found = (self.prefill(rows[p], prompts[p], images[p], table) for p in passes)
            return [position for positions in found for position in positions]
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
        slots = np.full(n, self.groups, np.int32)  # out of range: padding
        slots[: len(rows)] = rows
        with jax.set_mesh(self.mesh):
            self.caches = self._prefill(self.parameters, self.caches, slots, batch, pending)
        self.length[list(rows)] = self.passed_over[list(rows)] = 0
        self.tokens_run += sum(len(p) - 1 for p in prompts)
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
        """Appends tokens that the policy did not sample to some lanes.

        Args:
            lanes: (row, member) of each.
            pending: each lane's pending token, run together with the new ones; the last new token
                becomes pending.
            tokens: each lane's new token ids, one or more.
            images: the names of the images among each lane's new tokens.
            positions: each lane's rotary position of the pending token.
            table: grids and features of the images.

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
        self.tokens_run += sum(map(len, runs))
        return [int(v) for v in batch.following]

    def _extend_piece(
        self,
        lanes: Sequence[tuple[int, int]],
        batch: TokenRuns,
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
                LaneGrid.of(lanes, self.extend_lanes, self.groups),
                TokenRuns(
                    batch.tokens[at],
                    batch.positions[:, *at],
                    valid,
                    batch.feature_rows[at],
                    batch.features[chosen],
                    batch.following[chosen],
                ),
                last[chosen],
                self._used(max(self.length[lane] for lane in lanes)),
            )
        for lane, count in zip(lanes, valid.sum(1)):
            self.length[lane] += int(count)

    def decode(
        self,
        active: Bool[np.ndarray, 'b g'],
        budget: Int[np.ndarray, 'b g'],
        seeds: Int[np.ndarray, 'b g'],
        parameters: nnx.State | None = None,
    ) -> Chunk:
        """Samples up to a chunk of tokens on active lanes; a lane stops at a stop id or when its
        budget is used.

        Where many lanes wait for something, some active ones may get nothing this time; they come
        first the next time.

        Args:
            active: lanes that sample; the others keep what they hold.
            budget: most tokens of each active lane.
            seeds: of each lane's trajectory. The draw depends on seed and place in the sequence
                only, so that a trajectory is the same whatever runs beside it and whenever its
                tools answer.
            parameters: to sample with, like the engine's own, which they are by default.

        Returns:
            the tokens and their log-probs, of all lanes.
        """
        at, grid = self._taking_part(active)
        used = self._used(self.length[at][active[at]].max())
        operands = [x[at] for x in (active, budget.astype(np.int32), seeds.astype(np.uint32))]
        if grid is not None:  # its padding is out of range
            operands = [np.pad(x, ((0, len(grid.members) - len(x)), (0, 0))) for x in operands]
        weights = self.parameters if parameters is None else parameters
        with jax.set_mesh(self.mesh):
            self.caches, sampled = self._decode(weights, self.caches, grid, *operands, used)
        chunk = Chunk(*(np.zeros((*active.shape, *x.shape[2:]), x.dtype) for x in sampled))
        for all_lanes, part in zip(chunk, sampled):
            all_lanes[at] = np.asarray(part)[: len(at[0])]
        self.passed_over += active
        self.passed_over[at] = 0
        self.length += chunk.count
        self.tokens_run += int(chunk.count.sum())
        return chunk

    def _taking_part(
        self, active: Bool[np.ndarray, 'b g']
    ) -> tuple[tuple[np.ndarray, np.ndarray], LaneGrid | None]:
        """The lanes that decode now: as an index of a [R, W] grid, and as the program takes them."""
        return lanes_to_decode(active, self.passed_over, self.extend_lanes, platform())

    def room(self, lane: tuple[int, int]) -> int:
        """Tokens that still fit into a lane."""
        return self.suffix_capacity - int(self.length[lane])

    def _used(self, longest: int) -> int:
        """Length of the suffix cache that a program reads: few sizes, short ones for short ones."""
        size, full = bucket(max(int(longest), 1), CACHE_STEP), self.layout.suffix_capacity
        return size if size < 0.9 * full else full  # nearly all is not worth a program of its own

    def _runs(self, runs, images, table: ImageTable, count: int, length: int, starts) -> TokenRuns:
        """Lists of tokens with their images as `count` runs, padded to `length`; `starts` are the
        rotary positions of their first tokens.
        """
        # Runs without an image have the programs of those with one.
        features, places = feature_tables(
            images, table, FEATURE_STEP, count, self.feature_width, self.dtype
        )
        out = TokenRuns(
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
            out.feature_rows[i, :n] = image_rows(run, names, offsets, self.image_token)
        return out
