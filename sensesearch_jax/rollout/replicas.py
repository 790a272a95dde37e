"""Engines on several groups of devices: their weights, and their compilation side by side."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jax.sharding import Mesh

from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.mesh import mesh_of, replica_axes, replicas
from sensesearch_jax.runtime.threads import parallel_map


def copies_for(engines: Sequence[Engine], parameters: nnx.State, mesh: Mesh) -> list[nnx.State]:
    """A copy of parameters for each engine, on the engine's devices; those of one replica share it.
    All processes call this together.

    Args:
        engines: of this process, as `Session.engines` made them.
        parameters: as they lie on the mesh.
        mesh: that the policy is trained on.
    """
    copies = {mesh_of(copy): copy for copy in replicas(parameters, mesh, replica_axes(mesh))}
    return [copies[engine.mesh] for engine in engines]


def hand_over(
    engines: Sequence[Engine], parameters: nnx.State, mesh: Mesh, version: int | None
) -> None:
    """Gives engines their copies of new weights, which they alone hold: `Engine.release` frees them.

    Args:
        engines: of this process.
        parameters: see `copies_for`.
        mesh: see `copies_for`.
        version: see `Engine.set_parameters`.
    """
    for engine, copy in zip(engines, copies_for(engines, parameters, mesh)):
        engine.set_parameters(copy, version)


def warm_up(engines: Sequence[Engine], features: FeatureStore) -> None:
    """Compiles all sizes of extend, decode and tower for every group of devices, side by side.

    Args:
        engines: that hold their weights.
        features: of the tower.
    """
    first = {engine.mesh: engine for engine in reversed(engines)}
    features.place(first)

    def one(engine: Engine) -> None:
        engine.warm_up()
        features.warm_up(engine.mesh)

    parallel_map(one, first.values(), len(first))
