"""Compilation: jax's persistent cache of compiled programs, and compiler options."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sensesearch_jax.errors import UserError

NO_CACHE = 'none'
MIN_SECONDS = 0.2  # of compilation, below which a program is not cached: reading it takes as long
LEVEL = 'xla_backend_optimization_level'


def enable_compilation_cache(folder: str, default: Path) -> None:
    """Enables jax's persistent compilation cache.

    jax's environment variables have precedence (JAX_COMPILATION_CACHE_DIR,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS).

    Args:
        folder: of the cache, made if absent; '' is that of the environment, else `default`, and
            'none' disables the cache. Runs and hosts may share it; of several processes the first
            alone writes. Who can write there can run code here.
        default: folder for ''. If it cannot be made, a warning says so, and there is no cache.

    Raises:
        UserError: `folder` cannot be made.
    """
    if folder == NO_CACHE:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if not folder and jax.config.jax_compilation_cache_dir:
        return
    path = folder or str(default)
    if '://' not in path:  # else a bucket that jax opens itself
        try:
            path = Path(path).expanduser().resolve()
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            problem = f'The compilation cache {path} cannot be made: {error}'
            if folder:
                raise UserError(
                    f"{problem}; give another folder by --config.compilation_cache=DIR, or '{NO_CACHE}'."
                ) from None
            warnings.warn(f'{problem}; every start compiles anew.')
            return
    jax.config.update('jax_compilation_cache_dir', str(path))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)


def user_cache_folder() -> Path:
    """Folder of the compilation cache in this user's cache directory."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'sensesearch_jax' / 'compiled'


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Options for `jax.jit(compiler_options=…)`, for large programs.

    On a CPU this is LLVM's first optimization level: matrix products come from libraries and XLA
    vectorizes loops itself, so programs ran as fast as at the third level, which took half as long
    again to compile. A level in XLA_FLAGS has precedence.

    Args:
        mesh: the devices to compile for.
    """
    given = LEVEL in os.environ.get('XLA_FLAGS', '')
    return {LEVEL: 1} if mesh.devices.flat[0].platform == 'cpu' and not given else None
