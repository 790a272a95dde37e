"""Metrics of a run as JSON lines, readable during the run and after it was killed.

A line is ``{"step": 12, "stage": "rl", "time": 1767225600.0, "values": {"loss": 0.1}}``: the step
within its stage, the stage's name, seconds since 1970, and the values. Numbers that are not finite
are null, because JSON has no NaN.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.journal import Journal, complete_length
from sensesearch_jax.runtime.metric_sinks import Sinks
from sensesearch_jax.runtime.workdir import atomic_write

Record = dict[str, Any]


class MetricWriter(Journal):
    """Writer that appends metrics to a file, for several threads.

    A line is with the system before `write` returns, so a kill loses none. Opening a file removes a
    last line that a killed process has written in part.
    """

    def __init__(self, path: str | os.PathLike[str], sinks: Sinks | None = None):
        """Opens the file, which is made if absent.

        Args:
          path: the metrics file, such as ``workdir / 'metrics.jsonl'``.
          sinks: other places for the metrics, closed with the file; none by default.

        Raises:
          ValueError: the file holds a damaged line before its last one.
        """
        self._sinks = sinks
        super().__init__(path, _is_record)
        _parse(self.path.read_bytes(), self.path)

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line.

        Args:
          stage: name of the stage.
          step: step within the stage.
          values: numbers (Python, numpy or jax scalars), booleans or strings by name.

        Raises:
          ValueError: a value is none of these; nothing is written.
        """
        record = {
            'step': int(step),
            'stage': stage,
            'time': time.time(),
            'values': {name: _plain(name, value) for name, value in values.items()},
        }
        self.append(record, sync=False)
        if self._sinks:
            self._sinks.write(record['stage'], record['step'], record['values'])

    def resume(self, stage: str, step: int) -> int:
        """Drops the lines of a stage beyond its restored step, which the run will write again.

        Args:
          stage: name of the stage; other stages' lines stay.
          step: last step whose line is kept; a value below the first step drops all.

        Returns:
          Number of lines dropped.
        """
        with self._write_lock:
            self._file.close()
            records = read_metrics(self.path)
            kept = [r for r in records if r['stage'] != stage or r['step'] <= step]
            if len(kept) < len(records):
                atomic_write(
                    self.path, ''.join(json.dumps(_no_nan(r), allow_nan=False) + '\n' for r in kept)
                )
            self._file = open(self.path, 'ab')
            if self._sinks:
                self._sinks.resume(stage, step)
        return len(records) - len(kept)

    def close(self) -> None:
        """Closes the file and the other places; a second call does nothing."""
        super().close()
        if self._sinks:
            self._sinks.close()


def read_metrics(path: str | os.PathLike[str], stage: str | None = None) -> list[Record]:
    """Reads a metrics file, also one that is still being written.

    Args:
      path: the metrics file; a missing one has no lines.
      stage: name of the stage whose lines are wanted; None for all.

    Returns:
      Records with the keys step, stage, time and values, in the order written; null among the
      values becomes NaN. A last line without its end is left out.

    Raises:
      ValueError: a line before the last one is damaged.
    """
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_bytes()
    records = _parse(text[: complete_length(text, _is_record)], path)
    return [record for record in records if stage is None or record['stage'] == stage]


def memory_use() -> dict[str, float]:
    """Memory of this process in MiB: `memory_peak_mib`, and `memory_mib` (resident now) on Linux."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use = {'memory_peak_mib': peak / (1024**2 if sys.platform == 'darwin' else 1024)}
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        use['memory_mib'] = pages * os.sysconf('SC_PAGE_SIZE') / 1024**2
    except OSError:
        pass
    return use


def _plain(name: str, value: Any) -> float | int | str | bool | None:
    """Metric as a JSON value; null for a number that is not finite."""
    if isinstance(value, (str, bool)):
        return value
    try:
        number = value.item() if hasattr(value, 'item') else value
        if not isinstance(number, (int, float, bool)):
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(f'Metric {name} must be a number or a string, got {value!r}.') from None
    return number if math.isfinite(number) else None


def _no_nan(record: Record) -> Record:
    return record | {
        'values': {name: _plain(name, value) for name, value in record['values'].items()}
    }


def _parse(text: bytes, path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if not _is_record(line):
            raise UserError(f'{path} is damaged in line {number}: remove that line to go on.')
        record = json.loads(line)
        values = {
            name: math.nan if value is None else value for name, value in record['values'].items()
        }
        records.append(record | {'values': values})
    return records


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.keys() >= {'step', 'stage', 'time', 'values'}
