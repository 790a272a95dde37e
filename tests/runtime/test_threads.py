"""Programs and functions that several threads use at once."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sensesearch_jax.runtime.threads import SharedProgram, side_by_side


def test_each_shape_compiles_once_however_many_threads_want_it():
    traced = []

    def twice(x):
        traced.append(x.shape)
        time.sleep(0.05)  # long enough for the others to come
        return 2 * x

    program = SharedProgram(jax.jit(twice))
    found = side_by_side(program, [jnp.ones(3), jnp.ones(3), jnp.ones(4), jnp.ones(3), jnp.ones(4)], 4)
    assert [float(x.sum()) for x in found] == [6, 6, 8, 6, 8]
    assert sorted(traced) == [(3,), (4,)]


def test_another_dtype_is_another_program():
    """Of which no two threads make one at the same time."""
    inside, most = [], []

    def program(x):
        inside.append(x)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    shared = SharedProgram(program)
    shared(jnp.ones(3))
    side_by_side(shared, [jnp.ones(3, jnp.bfloat16)] * 4, 4)
    assert max(most) == 1
    side_by_side(shared, [jnp.ones(3, jnp.bfloat16)] * 4, 4)
    assert max(most) > 1  # it is there now


@pytest.mark.parametrize('threads', [1, 3])
def test_results_are_in_the_order_of_the_items(threads):
    def late(n):
        time.sleep(0.01 * (5 - n))
        return n * n

    assert side_by_side(late, range(5), threads) == [0, 1, 4, 9, 16]


def test_it_runs_side_by_side():
    meeting = threading.Barrier(3, timeout=10)
    assert side_by_side(lambda _: meeting.wait() >= 0, range(3), 3) == [True] * 3


def test_an_error_stops_the_others():
    stopped = threading.Event()

    def work(n):
        if n == 1:
            raise KeyError('the second')
        assert stopped.wait(10)

    with pytest.raises(KeyError, match='the second'):
        side_by_side(work, range(3), 3, stopped.set)
