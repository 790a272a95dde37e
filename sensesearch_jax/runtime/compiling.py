"""How programs are compiled, beyond jax's defaults, and where they are kept for the next start."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sensesearch_jax.errors import UserError

NO_CACHE = 'none'
MIN_SECONDS = (
    0.2  # of compilation, from which a program is kept: what is quicker is made as soon as read
)
LEVEL = 'xla_backend_optimization_level'


def keep_programs(folder: str, default: Path) -> None:
    """Keeps compiled programs on disk, in jax's persistent compilation cache, and takes from there
    what is kept already.

    jax's own environment variables stand (JAX_COMPILATION_CACHE_DIR,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS).

    Args:
        folder: of the cache, made if absent; '' is what the environment says, else `default`, and
            'none' keeps nothing. Runs and hosts may share it; of several processes the first alone
            writes. Who can write there can run code here.

    Raises:
        UserError: `folder` cannot be made. Without `default` a run only takes longer, and a warning
            says so.
    """
    if folder == NO_CACHE:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if not folder and jax.config.jax_compilation_cache_dir:
        return
    path = folder or str(default)
    if '://' not in path:  # else a store that jax reaches by itself
        try:
            path = Path(path).expanduser().resolve()
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            said = f'The compilation cache {path} cannot be made: {error}'
            if folder:
                raise UserError(
                    f"{said}; give another folder by --config.compilation_cache=DIR, or '{NO_CACHE}'."
                ) from None
            warnings.warn(f'{said}; every start compiles anew.')
            return
    jax.config.update('jax_compilation_cache_dir', str(path))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)


def users_cache() -> Path:
    """Where this user's programs of one process keep what they can make again."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'sensesearch_jax' / 'compiled'


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """For `jax.jit(compiler_options=…)`, of programs that are large and run for minutes rather than
    days.

    On a CPU, LLVM's first level of optimisation: matrix products come from libraries and loops
    leave XLA in vectors already, so programs ran as fast as with its third, which took half as long
    again to compile. A level that XLA_FLAGS gives stands.

    Args:
        mesh: the devices that are compiled for.
    """
    given = LEVEL in os.environ.get('XLA_FLAGS', '')
    return {LEVEL: 1} if mesh.devices.flat[0].platform == 'cpu' and not given else None
