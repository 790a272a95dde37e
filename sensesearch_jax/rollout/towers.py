"""The vision tower on groups of devices: each replica of the sampler encodes on its own devices and
waits for no other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.vision_windows import ImageBatch
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.mesh import local, mesh_of, replicas
from sensesearch_jax.runtime.threads import SharedProgram


def tower_program(policy: Policy) -> tuple[jax.stages.Wrapped, nnx.State, Mesh]:
    """Program of a policy's tower, (parameters, an `ImageBatch` without its counts) -> features; those
    parameters on this process's devices, and their mesh, which it is to run and lower under.
    """
    graph, parameters = nnx.split(policy.vision)
    parameters = local(parameters)
    mesh = mesh_of(parameters)
    encode = jax.jit(
        lambda p, images: nnx.merge(graph, p)(*images), compiler_options=compiler_options(mesh)
    )
    return encode, parameters, mesh


@dataclass(eq=False)
class Tower:
    """A vision tower on the devices of a mesh; who uses it holds `turn`."""

    program: SharedProgram
    parameters: nnx.State
    mesh: Mesh
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, images: ImageBatch) -> Float[Array, 'n m d']:
        """Features of a batch of images."""
        with jax.set_mesh(self.mesh):  # as in Engine.set_parameters: kernels run per shard
            return self.program(self.parameters, images[:4])


class Towers:
    """A policy's frozen tower, on all of this process's devices and on those of replicas.

    Args:
        policy: whose tower it is.
    """

    def __init__(self, policy: Policy):
        program, parameters, mesh = tower_program(policy)
        self._everywhere = Tower(SharedProgram(program), parameters, mesh)
        self._towers = {_devices(mesh): self._everywhere}

    def place(self, meshes: Iterable[Mesh]) -> None:
        """Puts a tower on the devices of each replica, sharded along fsdp as a batch of images is.

        Args:
            meshes: of the replicas, none of whose programs may be running.
        """
        whole = self._everywhere
        for mesh in meshes:
            if _devices(mesh) not in self._towers:
                for copy in replicas(whole.parameters, whole.mesh, {'fsdp': mesh.size}):
                    here = mesh_of(copy)
                    self._towers[_devices(here)] = Tower(whole.program, copy, here)

    def on(self, mesh: Mesh | None) -> Tower:
        """The tower on the devices of a replica, once `place` has put it there; None for all
        devices of this process.
        """
        return self._everywhere if mesh is None else self._towers[_devices(mesh)]

    @property
    def compiles(self) -> int:
        """Programs compiled so far, on all groups of devices."""
        return self._everywhere.program.program._cache_size()


def _devices(mesh: Mesh) -> tuple[jax.Device, ...]:
    return tuple(mesh.devices.flat)
