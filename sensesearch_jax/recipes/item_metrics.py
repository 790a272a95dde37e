"""Metrics and alarms of a stage whose items come one by one, in an order of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime.alarm_log import AlarmLog
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.progress import Progress


@contextlib.contextmanager
def item_metrics(
    session: Session,
    bar: Progress,
    before: int,
    size: int,
    measure: Callable[[list[Any]], Mapping[str, float]],
) -> Iterator[Callable[[Any], None]]:
    """Within it, the function that takes in an item, before the bar counts it.

    Each `size` items make a line of metrics.jsonl, whose step is the number of items so far, and may
    raise alarms, but none that compares with the first items: those may be of another kind. The
    function raises the UserError of an alarm that stops the run. Each process of a program has its
    own items, and tells of its own alarms.

    Args:
        session: of the run.
        bar: of the stage, whose name is the stage's.
        before: items that earlier processes had finished.
        size: items of a line.
        measure: metrics of so many items.
    """
    newest: list[Any] = []
    session.metrics.resume(bar.desc, before)
    lines = read_metrics(session.workdir / 'metrics.jsonl', bar.desc)
    alarms = ConfigDict({**session.config.alarms, 'reference': 0})
    with AlarmLog(alarms, session.workdir, bar.desc, before, True, lines) as log:

        def note(item: Any) -> None:
            newest.append(item)
            if len(newest) < size:
                return
            step = bar.n + 1
            values = measure(newest)
            session.metrics.write(bar.desc, step, values)
            log.note(step, values, bar)
            newest.clear()
            if error := log.stopping():
                raise error

        yield note
