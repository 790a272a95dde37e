"""A learner's arrays on its mesh: trained and frozen parameters, moments, batches. Of a policy of mere
shapes they are shapes with their places.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from sensesearch_jax.runtime.mesh import ROWS, is_abstract, rows_sharding, shardings


def master_copy(start: Any, mesh: Mesh) -> Any:
    """The parameters in float32, as arrays of their own."""
    places = shardings(start, mesh)
    if is_abstract(start):
        return _shapes(start, places, jnp.float32)
    # Updates donate their buffers, so these are copies: the policy keeps its own.
    copy = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree),
        out_shardings=places,
    )
    return copy(jax.device_put(start, places))


def frozen(kept: Any, mesh: Mesh, dtype: DTypeLike) -> Any:
    """The parameters that are not trained, in the type of the forward pass; the same arrays where they
    have it.

    Args:
        kept: the parameters.
        mesh: that they are placed on.
        dtype: of the forward pass.
    """
    places = shardings(kept, mesh)
    if is_abstract(kept):
        return _shapes(kept, places, dtype)
    return jax.device_put(jax.tree.map(lambda x: x.astype(dtype), kept), places)


def first_moments(optimizer: optax.GradientTransformation, parameters: Any, places: Any) -> Any:
    """The optimizer's state before the first update.

    Args:
        optimizer: any of optax.
        parameters: that are trained.
        places: of the state.
    """
    if is_abstract(parameters):
        return _shapes(jax.eval_shape(optimizer.init, parameters), places)
    return jax.jit(optimizer.init, out_shardings=places)(parameters)


def placed(batch: Any, mesh: Mesh) -> Any:
    """A batch's arrays, of this process's rows, as arrays over the mesh, of all rows.

    Raises:
        ValueError: the mesh does not divide the rows.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)

    def place(path, x):
        if isinstance(x, jax.Array):
            return x
        axis = 1 if path[-1].name in ('positions', 'prompt_positions') else 0
        rows = x.shape[axis] * jax.process_count()
        if rows % shards:
            raise ValueError(
                f'{rows} rows in a micro-batch cannot be cut over data × fsdp × expert = {shards} devices; '
                'make micro_batch a multiple of it.'
            )
        sharding = rows_sharding(mesh, len(x.shape), axis)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree_util.tree_map_with_path(place, batch)


def _shapes(tree: Any, places: Any, dtype: DTypeLike | None = None) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=place),
        tree,
        places,
    )
