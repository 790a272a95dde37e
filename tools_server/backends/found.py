"""Results of a service elsewhere, each read by itself: one of an odd form costs no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tools_server import degraded
from tools_server.failures import ToolError

T = TypeVar('T')
MOST_RESULTS = 100  # of an answer that are looked at; nobody may ask for more than half of that


def each(results: Sequence[Any], read: Callable[[int, Any], T], name: str) -> list[T]:
    """Reads a service's results; one that cannot be read is left out, and that is noted.

    Args:
        results: as they came.
        read: from a result's place and value; raises AttributeError, KeyError, TypeError or
            ValueError for one of a form that it does not know.
        name: of the service.

    Raises:
        ToolError: 'unavailable'; there are results, and none is of a known form.
    """
    good: list[T] = []
    for rank, result in enumerate(results[:MOST_RESULTS]):
        try:
            good.append(read(rank, result))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            degraded.note(
                f'result {rank + 1} of {name} is left out: its form is unknown ({type(error).__name__})'
            )
    if results and not good:
        raise ToolError('unavailable', f'{name} sent results of an unknown form')
    return good
