"""Description of the machine that a program runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax


def machine() -> str:
    """Description of processor or accelerator, and versions of jax and Python."""
    device = jax.devices()[0]
    what = (
        f'{os.cpu_count()} cores, {platform.machine()}'
        if device.platform == 'cpu'
        else device.device_kind
    )
    return f'{what}, jax {jax.__version__}, Python {platform.python_version()}'


def host_memory() -> int:
    """Memory limit of this process in bytes: the machine's memory, or its container's limit."""
    found = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for limit in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        try:
            found = min(found, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such controller, or 'max'
            continue
    return found
