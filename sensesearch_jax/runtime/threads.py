"""Threads that run compiled programs in parallel: a single one does not fill the cores of a CPU, and
sampling goes on while another one trains.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np

In, Out, Sum = TypeVar('In'), TypeVar('Out'), TypeVar('Sum')


LAUNCHING = threading.RLock()
"""Held while a program of several devices is queued on them.

Such programs wait for each other's parts, so all devices must have them in one order: of two threads
that queued theirs at the same time, one device could begin with the first one's program, another with
the second one's, and both would wait for ever. Nobody compiles or waits for a result while holding it.
"""


class SharedProgram:
    """Jitted function for several threads: each program is compiled once, while those wait that want
    the same one, and those of several devices are queued on all of them in one order.
    """

    def __init__(self, program: Callable):
        self.program = program
        self._compiling: defaultdict[tuple, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[tuple, contextlib.AbstractContextManager] = {}  # who queues it holds it
        self._looking_up = threading.Lock()

    def __call__(self, *operands: Any) -> Any:
        """Results of the function."""
        form = tuple(map(_form, jax.tree.leaves(operands)))
        if form not in self._known:
            with self._looking_up:
                compiling = self._compiling[form]
            with compiling:
                if form not in self._known:
                    self.program.lower(*operands).compile()  # the call finds it
                    several = any(map(_on_several_devices, jax.tree.leaves(operands)))
                    self._known[form] = LAUNCHING if several else contextlib.nullcontext()
        with self._known[form]:
            return self.program(*operands)


def _form(operand: Any) -> Any:
    """Compilation key of an operand: shape, dtype and devices, or a Python number, which may be
    static.
    """
    if isinstance(operand, int):
        return operand
    return (
        np.shape(operand),
        getattr(operand, 'dtype', type(operand)),
        getattr(operand, 'sharding', None),
    )


def _on_several_devices(operand: Any) -> bool:
    return isinstance(operand, jax.Array) and len(operand.sharding.device_set) > 1


def parallel_map(
    f: Callable[[In], Out],
    items: Iterable[In],
    threads: int,
    stop: Callable[[], None] = lambda: None,
) -> list[Out]:
    """Results of `f` for each item, in the items' order, computed by a pool of threads.

    Args:
        f: function of one item.
        items: all of them.
        threads: size of the pool.
        stop: called when a call of `f` fails or the caller is interrupted, before the error is
            raised: makes the other calls end soon.
    """
    if threads == 1:
        return [f(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix='parallel') as pool:
        calls = [pool.submit(f, item) for item in items]
        try:
            done, _ = wait(calls, return_when=FIRST_EXCEPTION)
            for call in done:
                call.result()
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [call.result() for call in calls]


def parallel_sum(
    f: Callable[[In], Out], items: Iterable[In], add: Callable[[Sum | None, Out], Sum], threads: int
) -> Sum | None:
    """Sum of `f` over the items in their order, computed by a pool of threads; None of no items.

    Beside the sum there is at most one result for each thread, which waits until it is the next to
    be added. Items are taken one at a time, when a thread is free.

    Args:
        f: function of one item.
        items: all of them.
        add: the new sum, given the sum so far (None before the first) and a result.
        threads: size of the pool.
    """
    if threads == 1:
        total = None
        for item in items:
            total = add(total, f(item))
        return total
    numbered, taking, turn = enumerate(items), threading.Lock(), threading.Condition()
    total, following, failed = None, 0, False

    def work():
        nonlocal total, following
        while not failed:
            with taking:
                number, item = next(numbered, (None, None))
            if number is None:
                return
            result = f(item)
            with turn:
                turn.wait_for(lambda: failed or following == number)
                if failed:
                    return
                total = add(total, result)
                following += 1
                turn.notify_all()
            del item, result  # or they would live on beside the next ones

    def stop():
        nonlocal failed
        with turn:
            failed = True
            turn.notify_all()

    parallel_map(lambda _: work(), range(threads), threads, stop)
    return total
