"""The machine that a program runs on, in words."""

from __future__ import annotations

import os
import platform

import jax


def machine() -> str:
    """Processor or accelerator, cores and jax version."""
    device = jax.devices()[0]
    what = f'{os.cpu_count()} cores, {platform.machine()}' if device.platform == 'cpu' else device.device_kind
    return f'{what}, jax {jax.__version__}, Python {platform.python_version()}'
