"""Host memory while a policy is read from its directory: how far above the policy itself it goes,
in largest tensors.

    python -m experiments.benchmarks.checkpoint_memory

makes a directory of about 2.6 GB (the 3B's geometry with fewer layers, random numbers, bfloat16,
shards with an index) in a temporary folder, reads it in a process of its own onto eight virtual
devices, and prints the peak. On a CPU the devices' memory is the host's too, so what is counted is
the process's anonymous memory beyond the policy's own bytes; pages of the files that the system
maps and may drop at any time are not memory of the process. Exits with 1 above LIMIT. Two cores:
about a minute, 5 GB.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from sensesearch_jax.model.config import RELEASED, PolicySizes
from sensesearch_jax.model.hf_checkpoint import (
    abstract_policy,
    load_policy,
    released_name,
    tensor_table,
)
from sensesearch_jax.model.safetensors_io import PendingTensor, write_tensors
from sensesearch_jax.runtime.mesh import make_mesh

# Largest tensors: the one that is read, its copy in another layout, and compiled programs.
LIMIT = 3.0

LAYERS = 4
MESH = {'fsdp': 4, 'tensor': 2}


def synthetic(folder: Path, sizes: PolicySizes) -> int:
    """Writes a policy directory with random numbers; returns the bytes of its largest tensor."""
    policy, random = abstract_policy(sizes), np.random.default_rng(0)

    def number(shape):
        return lambda: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    tensors = [
        PendingTensor(released_name(name), row.shape, number(row.shape))
        for row in tensor_table(policy, nnx.state(policy, nnx.Param))
        for name in row.names
    ]
    write_tensors(folder, tensors, np.dtype(ml_dtypes.bfloat16), 1 << 28, write=True)
    (folder / 'config.json').write_text(json.dumps(sizes.to_hf('bfloat16')))
    return max(2 * math.prod(tensor.shape) for tensor in tensors)


def anonymous() -> int:
    """Bytes of this process's own memory, mapped files aside."""
    text = Path('/proc/self/status').read_text()
    return int(text.split('RssAnon:')[1].split()[0]) << 10


def read(folder: str) -> dict[str, float]:
    """Reads a directory and watches the memory meanwhile."""
    jax.config.update('jax_num_cpu_devices', math.prod(MESH.values()))
    devices = make_mesh(MESH)
    before, peak, done = anonymous(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    policy = load_policy(folder, jax.numpy.bfloat16, devices)
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    # Every device's copy: what a mesh does not cut is there several times.
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(policy, nnx.Param))
        for shard in leaf.addressable_shards
    )
    return {'seconds': seconds, 'policy': held, 'above': peak - before - held}


def main() -> None:
    released = RELEASED['3B']
    language = dataclasses.replace(released.language, layers=LAYERS)
    sizes = dataclasses.replace(released, language=language)
    spawn = multiprocessing.get_context('spawn')  # for memory of its own
    with tempfile.TemporaryDirectory() as folder, spawn.Pool(1) as process:
        largest = synthetic(Path(folder), sizes)
        found = process.apply(read, (folder,))
    ratio = found['above'] / largest
    print(
        f'policy {found["policy"] / 1e9:.2f} GB on {MESH}, largest tensor {largest / 1e6:.0f} MB: '
        f'{found["seconds"]:.1f} s, peak {found["above"] / 1e6:.0f} MB above the policy = {ratio:.2f} largest tensors'
    )
    if ratio > LIMIT:
        print(f'That is above {LIMIT} largest tensors.', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
