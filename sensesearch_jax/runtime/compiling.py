"""What the compiler is told beyond its defaults."""

from __future__ import annotations

import os
from typing import Any

from jax.sharding import Mesh

LEVEL = 'xla_backend_optimization_level'


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """For `jax.jit(compiler_options=…)`, of programs that are large and run for minutes rather than days.

    On a CPU, LLVM's first level of optimisation: matrix products come from libraries and loops leave XLA in vectors
    already, so programs ran as fast as with its third, which took half as long again to compile. A level that XLA_FLAGS
    gives stands.

    Args:
        mesh: the devices that are compiled for.
    """
    given = LEVEL in os.environ.get('XLA_FLAGS', '')
    return {LEVEL: 1} if mesh.devices.flat[0].platform == 'cpu' and not given else None
