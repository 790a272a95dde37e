"""Device mesh, and the sharding rules from logical axes to mesh axes.

Parameters name their logical axes where they are declared (model/parameters.py), batches and
activations where they are used. No other code names a mesh axis but attention and the output head,
which run per shard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.threads import LAUNCHING

AXES = ('data', 'fsdp', 'expert', 'sequence', 'tensor')
# A batch is sharded over all three: 'fsdp' is data parallelism that also shards the parameters,
# 'expert' one that also shards the experts.
ROWS = 'data', 'fsdp', 'expert'

RULES = {
    'rows': ROWS,
    'embed': ('fsdp', 'sequence'),
    'tokens': ('sequence', 'tensor'),  # between layers, where tokens are independent
    'sequence': 'sequence',  # tokens elsewhere
    'members': 'sequence',  # of a group, before their tokens: members are independent
    'vocabulary': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'experts': 'expert',
    'layers': None,  # scanned over: every device runs every layer
    'norm': None,
    'patch': None,
    'router': None,
    'pair': None,
    'rank': None,
}


def make_mesh(
    sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh of data × fsdp × expert × sequence × tensor.

    Args:
        sizes: devices along each axis, 1 by default; one of them may be -1, for all that the others
            leave.
        devices: those of the program by default. A program of several processes uses all of them.

    Raises:
        UserError: an unknown axis, sizes that do not fit the devices, or a row across processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    given = dict(sizes or {})
    if unknown := given.keys() - set(AXES):
        raise UserError(
            f'mesh.{min(unknown)} is no axis of the mesh; choose from {", ".join(AXES)}.'
        )
    shape = [int(given.get(axis, 1)) for axis in AXES]
    shown = ' × '.join(f'{axis} {size}' for axis, size in zip(AXES, shape))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f'The mesh {shown} is none: sizes are positive, and at most one is -1.')
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -math.prod(shape))
    count = math.prod(shape)
    if (
        count > len(devices)
        or len(devices) % count
        or (count < len(devices) and jax.process_count() > 1)
    ):
        raise UserError(
            f"The mesh {shown} does not fit {len(devices)} devices; change the config's mesh."
        )
    if jax.local_device_count() % math.prod(shape[-2:]) and jax.process_count() > 1:
        raise UserError(
            f"The mesh's sequence × tensor axes of {shape[-2]} × {shape[-1]} do not divide the "
            f'{jax.local_device_count()} devices of a process, but a row of a batch must be within one; '
            'choose some that do.'
        )
    # By process, so that the innermost axis stays on one host, whose links are the fastest.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))[:count]
    return Mesh(np.array(ordered).reshape(shape), AXES, (AxisType.Auto,) * len(AXES))


def spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Partition spec of an array; a dimension that its mesh axes do not divide is replicated.

    Of dimensions with the same mesh axis the first that it divides takes it.

    Args:
        axes: logical axis of each dimension, None for a replicated one.
        shape: of the array.
        mesh: that it is placed on.
    """
    parts, free = [], {name for name in mesh.axis_names if mesh.shape[name] > 1}
    for axis, size in zip(axes, shape, strict=True):
        names = mesh_axes(None if axis is None else RULES[axis])
        taken = tuple(name for name in names if name in free)
        if not taken or size % math.prod(mesh.shape[name] for name in taken):
            parts.append(None)
            continue
        free -= set(taken)
        parts.append(taken)
    return PartitionSpec(*parts)


def mesh_axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that shard a dimension, given its part of a partition spec."""
    return (part,) if isinstance(part, str) else part or ()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Sharding of every leaf: by logical axes where it has them, else replicated."""

    def one(leaf):
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(NamedSharding(mesh, spec(leaf.axes, leaf.shape, mesh)))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def mesh_of(parameters: Any) -> Mesh:
    """Mesh that parameters are placed on; the first device alone for those without one."""
    sharding = jax.tree.leaves(parameters)[0].sharding
    return (
        sharding.mesh
        if isinstance(sharding, NamedSharding)
        else make_mesh(devices=jax.local_devices()[:1])
    )


def is_abstract(tree: Any) -> bool:
    """Whether a tree has abstract leaves (`jax.ShapeDtypeStruct`), to compile for, not to run."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def local(tree: Any) -> Any:
    """Tree resharded to this process's devices, for computation without the other processes.

    In a program of one process nothing moves. Else each array is gathered from the shards of all
    processes, by one program of all of them.
    """
    if jax.process_count() == 1:
        return tree
    count, devices = jax.local_device_count(), jax.local_devices()
    everywhere = Mesh(
        np.array(sorted(jax.devices(), key=lambda d: (d.process_index, d.id))).reshape(-1, count),
        ('processes', 'devices'),
    )
    here = make_mesh({'fsdp': count}, devices)

    def one(x):
        # Over the longest axis that the devices divide, so that each has an equal shard.
        sizes = [size if size % count == 0 else 0 for size in x.shape]
        axis = int(np.argmax(sizes)) if any(sizes) else None

        def along(name):
            return PartitionSpec(*(name if i == axis else None for i in range(x.ndim)))

        sharded = jax.device_put(x, NamedSharding(everywhere, along('devices')))
        parts = [shard.data for shard in sharded.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(here, along('fsdp')), parts
        )

    return jax.tree.map(one, tree)


def replica_axes(mesh: Mesh) -> dict[str, int]:
    """Axes and sizes of one replica of a policy that samples: along tensor, and along expert as far
    as a process's devices go.

    Along the other axes replicas stand beside each other: each holds whole what training shards
    along fsdp and sequence, so that a token that is decoded gathers no parameter.

    Args:
        mesh: that the policy is trained on, or loaded.
    """
    tensor = mesh.shape['tensor']
    return {'expert': math.gcd(mesh.shape['expert'], _here(mesh) // tensor), 'tensor': tensor}


def replica_count(mesh: Mesh) -> int:
    """Number of replicas on this process's devices of a mesh."""
    return _here(mesh) // math.prod(replica_axes(mesh).values())


def _here(mesh: Mesh) -> int:
    """Number of this process's devices; of a slice that is compiled for ahead of time, the first's."""
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def replicas(tree: Any, mesh: Mesh, axes: Mapping[str, int]) -> list[Any]:
    """Copies of parameters, one for each of this process's groups of neighbouring devices.

    Every device gets its shard by one collective over the mesh and keeps it: what its group has not
    comes in from the others, and nothing goes through a host. All processes call this together.

    Args:
        tree: parameters that lie on the devices of `mesh`.
        mesh: whose devices are divided into groups.
        axes: sizes of a group's mesh, over which its copy is sharded by the rules.
    """
    shape = [axes.get(axis, 1) for axis in AXES]

    def grid(devices, *copies):
        return Mesh(devices.reshape(*copies, *shape[1:]), AXES, (AxisType.Auto,) * len(AXES))

    size = math.prod(shape)
    # No parameter is sharded over data.
    places = shardings(tree, grid(mesh.devices, -1))
    with multihost.together() if mesh.is_multi_process else LAUNCHING:
        placed = jax.device_put(tree, places)

    def copy(devices):
        own = grid(devices, 1)

        def one(x, place):
            shards = {shard.device: shard.data for shard in x.addressable_shards}
            return jax.make_array_from_single_device_arrays(
                x.shape, NamedSharding(own, place.spec), [shards[device] for device in devices]
            )

        return jax.tree.map(one, placed, places)

    groups = mesh.devices.reshape(-1, size)
    return [copy(group) for group in groups if group[0].process_index == jax.process_index()]


def rows_sharding(mesh: Mesh, dimensions: int, axis: int = 0) -> NamedSharding:
    """Sharding of a batch's array over its rows.

    Args:
        mesh: that it is placed on.
        dimensions: of the array.
        axis: the dimension of rows.
    """
    parts: list[Any] = [None] * dimensions
    parts[axis] = ROWS
    return NamedSharding(mesh, PartitionSpec(*parts))


def current() -> AbstractMesh | None:
    """Mesh that the caller has set (`jax.set_mesh`); None for no mesh, or one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Platform that the current program is compiled for: 'cpu', 'tpu' or 'gpu'.

    It need not be that of the machine that compiles it.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def sequence_shards() -> int:
    """Number of devices along the current mesh's sequence axis."""
    mesh = current()
    return 1 if mesh is None else mesh.shape['sequence']


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Activation with a sharding constraint: parameters are to be moved, not activations.

    Args:
        x: the activation.
        axes: logical axes of its first dimensions; those after them are left to the compiler.
    """
    mesh = current()
    if mesh is None:
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    first = spec(axes, x.shape[: len(axes)], mesh)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*first, *rest))
