"""The engines of a session: so many on each replica of the policy, and what is asked shared out among
them."""

import runpy
from pathlib import Path

import jax
import pytest
from flax import nnx

from sensesearch_jax.recipes.session import Session, load_policy_directory
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.mesh import make_mesh


@pytest.mark.parametrize(
    ('sizes', 'asked', 'expected'),
    [
        ({'fsdp': 4}, 100, [(4, [i]) for i in range(4) for _ in range(2)]),
        ({'fsdp': 4}, 2, [(1, [0]), (1, [1])]),
        ({'fsdp': 2}, 0, [(1, [0])]),
    ],
)
def test_groups_are_shared_out(policy_folder, sizes, asked, expected):
    """At most 8 at once on a replica, in two engines."""
    config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'rl.py'))['get_config']()
    mesh = make_mesh(sizes, jax.devices()[:4])
    loaded = load_policy_directory(policy_folder, config, mesh, 'float32')
    session = Session(config, None, None, None, mesh)

    def engines(asked):
        return session.engines(
            loaded,
            asked=asked,
            groups=8,
            members=2,
            sampling=Sampling(),
            parameters=nnx.state(loaded.policy),
        )

    found = engines(asked)
    assert [(e.groups, [d.id for d in e.mesh.devices.flat]) for e in found] == expected
    assert engines(asked) is found
