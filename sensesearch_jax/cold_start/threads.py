"""Work on many items in threads: results as they come, failures again at the end, an end in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import TypeVar

from sensesearch_jax.agent.ledger import BudgetSpent

PASSES = 3  # over items on which something failed

In, Out = TypeVar('In'), TypeVar('Out')


def in_threads(
    work: Callable[[In], Out], items: Sequence[In], threads: int, failed: Callable[[Out], bool]
) -> Iterator[tuple[In, Out]]:
    """Items and their results, in the order in which they are ready.

    Items that failed are worked on again after the others, while that helps; their last result is
    given all the same. After a spent budget nothing more is begun; what is ready then still comes
    before the error is raised.

    Args:
        work: of one item.
        items: in the order in which they are begun.
        threads: at work at a time.
        failed: whether a result may be another one if it is tried again.

    Raises:
        BudgetSpent: of some of the items.
    """
    left = list(items)
    for number in range(1, PASSES + 1):
        lost: list[tuple[In, Out]] = []
        for item, result in _one_pass(work, left, threads):
            if failed(result):
                lost.append((item, result))
            else:
                yield item, result
        if number == PASSES or not 0 < len(lost) < len(left):
            yield from lost
            return
        left = [item for item, _ in lost]


def _one_pass(
    work: Callable[[In], Out], items: Sequence[In], threads: int
) -> Iterator[tuple[In, Out]]:
    spent: list[BudgetSpent] = []

    # Checked by each thread itself: the reader of results may come too late to stop the others.
    def begin(item):
        if spent:
            raise CancelledError
        try:
            return work(item)
        except BudgetSpent as error:
            spent.append(error)
            raise

    pool = ThreadPoolExecutor(threads)
    try:
        futures = {pool.submit(begin, item): item for item in items}
        for future in as_completed(futures):
            try:
                result = future.result()
            except (BudgetSpent, CancelledError):
                continue
            yield futures[future], result
    except BaseException:
        # An interrupted run does not wait for work under way, which would go on spending.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    if spent:
        raise spent[0]
