"""Compiled programs run side by side, from several threads: one alone does not fill the cores of a
CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np

In, Out, Sum = TypeVar('In'), TypeVar('Out'), TypeVar('Sum')


class SharedProgram:
    """A function of `jax.jit` for several threads: what one of them compiles, the others wait for
    and then have.
    """

    def __init__(self, program: Callable):
        self.program = program
        self._known: set[tuple] = set()
        self._compiling = threading.Lock()

    def __call__(self, *operands: Any) -> Any:
        """The program's results."""
        form = tuple(map(_form, jax.tree.leaves(operands)))
        if form in self._known:
            return self.program(*operands)
        with self._compiling:
            result = self.program(*operands)
            self._known.add(form)
        return result


def _form(operand: Any) -> Any:
    """What of an operand a program is compiled for: a number of Python's may be a static argument,
    and counts as it is.
    """
    return (
        operand
        if isinstance(operand, int)
        else (np.shape(operand), getattr(operand, 'dtype', type(operand)))
    )


def side_by_side(
    f: Callable[[In], Out],
    items: Iterable[In],
    threads: int,
    stop: Callable[[], None] = lambda: None,
) -> list[Out]:
    """`f` of each item, in the items' order, at most `threads` at a time.

    Args:
        stop: called when one of them fails or the caller is interrupted: makes the others end soon.
            The error is raised after that.
    """
    if threads == 1:
        return [f(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix='side-by-side') as pool:
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


def sum_side_by_side(
    f: Callable[[In], Out], items: Iterable[In], add: Callable[[Sum | None, Out], Sum], threads: int
) -> Sum | None:
    """`f` of each item, at most `threads` at a time, added up in the items' order; None of no
    items.

    Beside the sum there is at most one result for each thread: who is done early waits for its
    turn. An item is taken when a thread is free for it, one at a time.

    Args:
        add: the sum with one result more, given the sum so far (None before the first).
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

    side_by_side(lambda _: work(), range(threads), threads, stop)
    return total
