"""Replicas of the sampler on groups of devices: what each holds, and what it does not move."""

import math
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx
from scripted_tools import ScriptedTools
from small_policies import STOP, SUPPRESSED, small_policy

from experiments.benchmarks.compiled import collectives
from experiments.benchmarks.tpu_programs import per_device, placed
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.runtime.mesh import (
    make_mesh,
    mesh_of,
    replica_axes,
    replica_count,
    replicas,
    shardings,
)


def mesh_of_four(**sizes):
    return make_mesh(sizes, jax.devices()[:4])


@pytest.mark.parametrize(
    ('sizes', 'axes', 'count'),
    [
        ({'fsdp': 4}, {'expert': 1, 'tensor': 1}, 4),
        ({'fsdp': 2, 'tensor': 2}, {'expert': 1, 'tensor': 2}, 2),
        ({'data': 2, 'expert': 2}, {'expert': 2, 'tensor': 1}, 2),
    ],
)
def test_each_replica_has_all_parameters_on_devices_of_its_own(sizes, axes, count):
    """Sharded over its own axes alone."""
    mesh = mesh_of_four(**sizes)
    assert (replica_axes(mesh), replica_count(mesh)) == (axes, count)
    values = {
        ('experts', 'embed', 'mlp'): np.arange(2 * 4 * 6.0).reshape(2, 4, 6),
        ('norm',): np.arange(3.0),
    }
    state = nnx.State(
        {str(i): nnx.Param(x, axes=names) for i, (names, x) in enumerate(values.items())}
    )
    state = jax.device_put(state, shardings(state, mesh))
    copies = replicas(state, mesh, axes)
    devices = [device for copy in copies for device in mesh_of(copy).devices.flat]
    assert devices == [*mesh.devices.flat]
    shards = math.prod(axes.values())
    for copy in copies:
        for own, whole in zip(jax.tree.leaves(copy), values.values(), strict=True):
            assert np.array_equal(own, whole) and {'data', 'fsdp'}.isdisjoint(own.sharding.spec)
        assert per_device(copy) == 2 * 4 * 6 * 4 / shards + 3 * 4


def decode_of(mesh, groups):
    """Bytes of the suffix caches on a device, and the collectives of decoding on a mesh."""
    engine = Engine(
        placed(small_policy().sizes, np.float32, mesh),
        groups=groups,
        members=4,
        prompt_capacity=64,
        suffix_capacity=128,
        chunk=4,
        stop=(STOP,),
        suppressed=SUPPRESSED,
    )
    compiled = engine.lower(32, 132)['decode'].compile()
    moved, _ = collectives(compiled.as_text(), 4)
    return per_device(engine.caches.suffix), moved, compiled.as_text().count(' all-gather(')


def test_a_replica_holds_its_own_caches_and_gathers_no_parameter():
    """Beside one sampler that spans four devices, as many groups in flight."""
    whole, moved, gathers = decode_of(mesh_of_four(fsdp=4), 4)
    assert moved['all-gather'] > 0 and gathers > 10
    own, alone, none = decode_of(mesh_of_four(), 1)
    assert own == whole / 4 and not alone and none == 0


class SlowTower:
    """Takes its time, so that another one comes meanwhile."""

    def __init__(self):
        self.turn, self.encoded = threading.Lock(), []

    def __call__(self, batch):
        time.sleep(0.05)
        self.encoded.append(batch.counts)
        return np.zeros((*batch.order.shape, 32), np.float32)


def test_two_towers_encode_no_picture_twice(store_for, questions):
    client, towers = ScriptedTools(), {0: SlowTower(), 1: SlowTower()}
    store = store_for(client)
    store._towers = type('Towers', (), {'on': towers.get})
    a, b, c, d = [client.upload(q.images[0]) for q in questions]
    found = {}
    threads = [
        threading.Thread(target=lambda i, refs: found.update({i: store.table(refs, (), i)}), args=x)
        for x in enumerate([(a, b, c), (c, b, d)])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].features.keys() == {r.sha256 for r in (a, b, c)}
    assert found[1].features.keys() == {r.sha256 for r in (b, c, d)}
    assert store.images_encoded == store.distinct_images == 4 and not store._encoding
    assert all(tower.encoded for tower in towers.values())
