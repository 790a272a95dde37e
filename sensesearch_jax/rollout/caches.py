"""The KV caches of all trajectories in flight: allocation, reading by lane, writing in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.config import LanguageSizes
from sensesearch_jax.model.text_decoder import KeysValues
from sensesearch_jax.runtime.mesh import constrain, spec

TOKEN_AXES = KVCache(5, 4, None, 4, 4)  # of all layers' contexts


class Caches(NamedTuple):
    """All keys and values of the lanes in flight; `*_length` say how many are real."""

    prefix: KVCache  # [L, B, 1, K, E, P] and [L, B, 1, K, P, E]
    prefix_length: Int[Array, ' b']
    suffix: KVCache  # [L, B, G, K, E, S] and [L, B, G, K, S, E]
    suffix_length: Int[Array, 'b g']
    pending: Int[Array, 'b g']  # the token to run next
    position: Int[Array, 'b g']  # its rotary position


class LaneGrid(NamedTuple):
    """A grid of lanes, R rows with W of their members each. Indices out of range are padding."""

    rows: Int[np.ndarray, ' r'] | None  # None for all of them
    members: Int[np.ndarray, 'r w']

    @classmethod
    def of(cls, lanes: Sequence[tuple[int, int]], count: int, groups: int) -> LaneGrid:
        """A few lanes, each as a row of one member.

        Args:
            lanes: (row, member) of at most `count` lanes.
            count: R, to which the grid is padded.
            groups: B, which as an index is out of range.
        """
        grid = np.full((2, count), groups, np.int32)
        grid[:, : len(lanes)] = np.array(lanes).T
        return cls(grid[0], grid[1][:, None])


@dataclass(frozen=True)
class CacheLayout:
    """Shapes of the caches, and how programs read and write them.

    Args:
        sizes: of the text decoder.
        groups: B.
        members: G.
        prompt_capacity: P in tokens.
        suffix_capacity: S in tokens.
        quantized: keys and values are kept as int8.
    """

    sizes: LanguageSizes
    groups: int
    members: int
    prompt_capacity: int
    suffix_capacity: int
    quantized: bool

    def zeros(self, dtype: np.dtype) -> Caches:
        """Empty caches of a policy that computes in `dtype`."""
        s, b, g = self.sizes, self.groups, self.members

        def room(lanes, *shape):
            return jnp.zeros((s.layers, b, lanes, s.kv_heads, *shape), dtype)

        def pair(lanes, tokens):
            return self.stored(
                KVCache(room(lanes, s.head_width, tokens), room(lanes, tokens, s.head_width), None)
            )

        def zeros(*shape):
            return jnp.zeros(shape, jnp.int32)

        prefix, suffix = pair(1, self.prompt_capacity), pair(g, self.suffix_capacity)
        return constrained(Caches(prefix, zeros(b), suffix, zeros(b, g), zeros(b, g), zeros(b, g)))

    def abstract(self, dtype: np.dtype, mesh: Mesh) -> Caches:
        """Shapes and shardings of `zeros`, without the memory."""

        def place(x):
            return x.update(sharding=NamedSharding(mesh, spec(_axes(x), x.shape, mesh)))

        return jax.tree.map(place, jax.eval_shape(lambda: self.zeros(dtype)))

    def stored(self, fresh: KVCache) -> KVCache:
        """Keys and values as the caches hold them."""
        return fresh.quantized() if self.quantized else fresh

    def lanes(self, grid: LaneGrid | None) -> tuple[Int[Array, ' n'], Int[Array, ' n']]:
        """Row and member of each lane of a grid, or of all lanes."""
        if grid is None:
            grid = LaneGrid(
                None, jnp.broadcast_to(jnp.arange(self.members), (self.groups, self.members))
            )
        rows = jnp.arange(self.groups) if grid.rows is None else grid.rows
        return jnp.repeat(rows, grid.members.shape[1]), grid.members.ravel()

    def read(
        self, caches: Caches, grid: LaneGrid | None, used: int
    ) -> tuple[tuple[Array, Array], Int[Array, ' n'], tuple[KVCache, KVCache]]:
        """The caches of a grid's lanes.

        Args:
            caches: of all lanes.
            grid: N lanes, or None for all; lanes out of range read those at the edge.
            used: tokens of the suffix caches that are read, at least as many as any lane holds.

        Returns:
            row and member [N] of each lane, within range; the length [N] of its suffix; and the
            contexts (prefix, suffix) of all layers.
        """
        b, g = take = tuple(
            jnp.minimum(x, most - 1)
            for x, most in zip(self.lanes(grid), caches.suffix_length.shape)
        )
        prefix, prefix_length = caches.prefix, caches.prefix_length
        suffix = by_field(
            lambda axis, x: jax.lax.slice_in_dim(x, 0, used, axis=axis), caches.suffix
        )
        length = caches.suffix_length[take]
        if grid is not None:

            def taken(x, *places, shape):
                # Flat, and shaped afterwards: over an axis of one the CPU's compiler would copy what
                # it has gathered once more, for the order of two axes that is one and the same.
                found = x[:, *places]
                return found.reshape(len(x), *shape, *found.shape[2:])

            rows, width = grid.members.shape
            if grid.rows is not None:
                of_row = b.reshape(rows, width)[:, 0]
                prefix = jax.tree.map(lambda x: taken(x[:, :, 0], of_row, shape=(rows, 1)), prefix)
                prefix_length = prefix_length[of_row]
            suffix = jax.tree.map(lambda x: taken(x, b, g, shape=(rows, width)), suffix)
        prefix = prefix._replace(
            valid=(jnp.arange(self.prompt_capacity) < prefix_length[:, None])[:, None]
        )
        suffix = suffix._replace(
            valid=jnp.arange(used) < length.reshape(suffix.keys.shape[1:3])[..., None]
        )
        return take, length, (prefix, suffix)

    def read_by_layer(
        self, caches: Caches, grid: LaneGrid | None, used: int
    ) -> tuple[tuple[Array, Array], Int[Array, ' n'], tuple[tuple[KVCache, ...], ...]]:
        """As `read`, with the contexts of each layer as arrays of their own, without a layer axis.

        So the lanes' keys and values are copied once; slices of what `read` returns would copy them
        again.

        Args:
            caches: see `read`.
            grid: see `read`.
            used: see `read`.
        """

        def one(layer):
            def only(cache):
                return jax.tree.map(lambda x: x[layer : layer + 1], cache)

            parts = {'prefix': only(caches.prefix), 'suffix': only(caches.suffix)}
            return self.read(caches._replace(**parts), grid, used)

        found = [one(layer) for layer in range(self.sizes.layers)]
        take, length, _ = found[0]
        return take, length, tuple(tuple(c.of_layer(0) for c in of) for _, _, of in found)


def write(
    cache: KVCache,
    lanes: tuple[Int[Array, ' n'], Int[Array, ' n']],
    starts: Int[Array, ' n'],
    fresh: KVCache,
    valid: Bool[Array, 'n t'],
) -> KVCache:
    """Appends new keys and values to the suffix caches of some lanes.

    One lane after the other, in place: a scatter of single tokens takes many times as long on a
    CPU.

    Args:
        cache: the suffixes of all lanes.
        lanes: row and member of each lane.
        starts: tokens that each lane holds already; the new ones are put behind them.
        fresh: [L, N, 1, …], T new tokens of each lane.
        valid: False for padding, which changes nothing.
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

        return by_field(put, cache, fresh)

    return jax.lax.fori_loop(0, len(starts), lane, cache)


def _axes(x: jax.Array) -> tuple[str | None, ...]:
    """Logical axes of an array of the caches: keys and values are sharded by head, the rest is
    replicated.

    Not by row: every pass writes rows of its choice, for which the compiler would fetch all of
    them.
    """
    return tuple('kv_heads' if x.ndim >= 5 and i == 3 else None for i in range(x.ndim))


def constrained(caches: Caches) -> Caches:
    """The caches with the sharding that every program takes and returns: none recompiles."""
    return jax.tree.map(lambda x: constrain(x, _axes(x)), caches)


def by_head(fresh: KeysValues) -> KVCache:
    """Keys and values of a forward pass, in the caches' order of axes."""
    return KVCache.of(fresh.keys, fresh.values, None)


def by_field(f: Callable[..., Array], *caches: KVCache) -> KVCache:
    """`f` of the axis of tokens and the arrays, for keys, values and their scales if any."""
    return KVCache(
        *(
            None if parts[0] is None else f(axis, *parts)
            for axis, *parts in zip(TOKEN_AXES, *caches)
        )
    )
