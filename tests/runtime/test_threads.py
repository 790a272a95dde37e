"""Programs and functions that several threads use at once."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sensesearch_jax.runtime.mesh import make_mesh, rows_sharding
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


class Slow:
    """In the place of a jitted function: what four threads do `together`, 'compile' or 'queue', waits for
    all of them, and of the other the most that did it at a time are counted."""

    def __init__(self, together):
        self.together, self.meeting = together, threading.Barrier(4, timeout=60)
        self.inside = self.most = 0

    def note(self, what):
        if what == self.together:
            self.meeting.wait()
            return
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.02)
        self.inside -= 1

    def lower(self, x):
        return self

    def compile(self):
        self.note('compile')

    def __call__(self, x):
        self.note('queue')


def test_no_two_threads_compile_the_same_program():
    """But all of them use it at once."""
    program = Slow(together='queue')
    parallel_map(SharedProgram(program), [jnp.ones(3)] * 4, 4)
    assert program.most == 1


def test_programs_of_several_devices_are_queued_one_at_a_time():
    """Whichever they are, or two devices could have them in two orders; they compile side by side."""
    mesh = make_mesh({'fsdp': 2}, jax.devices()[:2])
    x = jax.device_put(jnp.ones(4), rows_sharding(mesh, 1))
    program = Slow(together='compile')
    parallel_map(lambda _: SharedProgram(program)(x), range(4), 4)
    assert program.most == 1


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
