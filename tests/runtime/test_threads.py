"""Programs and functions that several threads use at once."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sensesearch_jax.runtime.threads import SharedProgram, parallel_map, parallel_sum


def test_each_shape_compiles_once_however_many_threads_want_it():
    traced = []

    def twice(x):
        traced.append(x.shape)
        time.sleep(0.05)  # long enough for the others to come
        return 2 * x

    program = SharedProgram(jax.jit(twice))
    found = parallel_map(
        program, [jnp.ones(3), jnp.ones(3), jnp.ones(4), jnp.ones(3), jnp.ones(4)], 4
    )
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
    parallel_map(shared, [jnp.ones(3, jnp.bfloat16)] * 4, 4)
    assert max(most) == 1
    parallel_map(shared, [jnp.ones(3, jnp.bfloat16)] * 4, 4)
    assert max(most) > 1  # it is there now


@pytest.mark.parametrize('threads', [1, 3])
def test_results_are_in_the_order_of_the_items(threads):
    def late(n):
        time.sleep(0.01 * (5 - n))
        return n * n

    assert parallel_map(late, range(5), threads) == [0, 1, 4, 9, 16]


def test_it_runs_side_by_side():
    meeting = threading.Barrier(3, timeout=10)
    assert parallel_map(lambda _: meeting.wait() >= 0, range(3), 3) == [True] * 3


def test_an_error_stops_the_others():
    stopped = threading.Event()

    def work(n):
        if n == 1:
            raise KeyError('the second')
        assert stopped.wait(10)

    with pytest.raises(KeyError, match='the second'):
        parallel_map(work, range(3), 3, stopped.set)


@pytest.mark.parametrize('threads', [1, 2, 4])
def test_results_are_added_in_their_order_and_few_wait(threads):
    """The first ones take longest; nothing is taken before there is a thread for it."""
    alive, most, taken, lock = 0, 0, [], threading.Lock()

    def items():
        for i in range(12):
            taken.append(i)
            yield i

    def f(i):
        nonlocal alive, most
        time.sleep(0.02 if i % 4 == 0 else 0.001)
        with lock:
            alive += 1
            most = max(most, alive)
        return [i]

    def add(total, found):
        nonlocal alive
        assert len(taken) <= found[0] + threads + 1
        with lock:
            alive -= 1
        return found if total is None else total + found

    assert parallel_sum(f, items(), add, threads) == list(range(12))
    assert 1 <= most <= threads
    assert parallel_sum(f, [], add, threads) is None


@pytest.mark.parametrize('where', ['f', 'items', 'add'])
def test_an_error_ends_the_sum(where):
    """Though others wait for their turn behind the one that failed."""

    def fail(at, i):
        if where == at and i == 3:
            raise KeyError(where)

    def items():
        for i in range(40):
            fail('items', i)
            yield i

    def f(i):
        time.sleep(0.01 if i == 3 else 0)
        fail('f', i)
        return i

    def add(total, i):
        fail('add', i)
        return i

    with pytest.raises(KeyError, match=where):
        parallel_sum(f, items(), add, 3)
