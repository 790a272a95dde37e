"""What the compiler is told beyond its defaults."""

from __future__ import annotations

from typing import Any


def compiler_options(platform: str) -> dict[str, Any] | None:
    """For `jax.jit(compiler_options=…)`, of programs that are large and run for minutes rather than days.

    On a CPU, LLVM's first level of optimisation: matrix products come from libraries and loops leave XLA in vectors
    already, so programs ran as fast as with its third, which took half as long again to compile.

    Args:
        platform: what is compiled for: 'cpu', 'tpu', 'gpu'.
    """
    return {'xla_backend_optimization_level': 1} if platform == 'cpu' else None
