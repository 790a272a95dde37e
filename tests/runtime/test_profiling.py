"""The trace of a few steps after the first ones."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from sensesearch_jax.runtime.profiling import Profiler


@pytest.mark.parametrize(
    'steps, start, end, traced',
    [
        (2, 0, 9, [2, 3]),
        (2, 5, 9, [7, 8]),  # of a run that goes on
        (3, 0, 4, [1, 2, 3]),  # there are not enough behind the first two
        (3, 0, 2, [0, 1]),
    ],
)
def test_the_steps_behind_the_first_are_traced(tmp_path, steps, start, end, traced):
    @jax.jit
    def work(x):
        with jax.named_scope('mlp'):
            return x @ x

    with Profiler(tmp_path, 'sft', steps, start, end) as profiler:
        for step in range(start, end):
            with profiler.step(step):
                work(jnp.ones((8, 8))).block_until_ready()
    (file,) = tmp_path.rglob('*.trace.json.gz')
    assert list(tmp_path.rglob('*.xplane.pb'))
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    numbers = {int(e['args']['step_num']) for e in events if 'step_num' in e.get('args', {})}
    assert sorted(numbers) == traced


def test_no_steps_leave_no_trace(tmp_path):
    with Profiler(tmp_path, 'sft', 0, 0, 3) as profiler:
        for step in range(3):
            with profiler.step(step):
                pass
    assert not list(tmp_path.iterdir())
