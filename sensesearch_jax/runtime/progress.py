"""Progress of a loop: a bar with the remaining time on a terminal, plain lines in a log file, and a
file that others may read.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from sensesearch_jax.runtime.workdir import atomic_write

FILE_S = 2.0  # seconds between two writings of the file
LINE = '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'

_path: Path | None = None  # of the file, where `keep_file` has named one


def keep_file(path: Path | None) -> None:
    """From now on every loop of this process writes its progress to a file, as one JSON object:
    `stage`, `done`, `total` (null if unknown), `unit`, `time` of the last step (seconds since 1970),
    `left_s` (remaining seconds, null if unknown) and `shown`, the metrics beside the bar as texts.
    None ends that.
    """
    global _path
    _path = path


class Progress(tqdm):
    """Progress display: steps done, remaining time and a few metrics.

    On a terminal this is tqdm's bar. Elsewhere (CI, nohup) a bar would fill the log with carriage
    returns, so a plain line is printed every `interval_s` seconds instead, and one at the end:

        rl: 12/100 [01:10<08:33, 5.8s/step] reward=0.61

    Usable as a context manager. Not for several threads.

    Attributes:
      alarms: names of the alarms that are raised, shown before the metrics.
    """

    alarms: tuple[str, ...] = ()
    monitor_interval = 0  # no thread that looks after slow loops

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        initial: int = 0,
        unit: str = 'step',
        interval_s: float = 15.0,
        file: TextIO | None = None,
    ):
        """Starts the clock.

        Args:
          description: name of the stage.
          total: number of steps; None if unknown, then no remaining time is shown.
          initial: steps done before, by an earlier process; they do not count for the speed.
          unit: name of one step.
          interval_s: seconds between plain lines.
          file: where to write; standard error by default.
        """
        self._file = file or sys.stderr
        self._metrics: dict[str, Any] = {}
        self._written = 0.0
        how: dict[str, Any] = {'file': self._file, 'dynamic_ncols': True}
        if not self._file.isatty():
            how = {'file': _Lines(self._file), 'bar_format': LINE, 'position': 0, 'smoothing': 0}
            # No line at the start, which any delay suppresses, and later by the clock alone.
            how |= {'delay': sys.float_info.min, 'mininterval': interval_s, 'miniters': 0}
        super().__init__(desc=description, total=total, initial=initial, unit=unit, **how)
        self._write_file()

    def update(self, steps: int = 1, **metrics: float | str) -> None:
        """Counts steps as done and shows the metrics beside the bar until the next ones.

        Args:
          steps: how many steps were done since the last call.
          **metrics: a few numbers or short texts.
        """
        self._metrics = metrics or self._metrics
        self.set_postfix(self._shown(), refresh=False)
        super().update(steps)
        if time.monotonic() - self._written >= FILE_S:
            self._write_file()

    def say(self, sentence: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._file.isatty():
            self.write(sentence, file=self._file)
        else:
            print(sentence, file=self._file, flush=True)

    def close(self) -> None:
        """Shows the last state; a second call does nothing."""
        if not self.disable:
            self._write_file()
        super().close()

    def _shown(self) -> dict[str, str]:
        alarms = {'ALARM': ' '.join(self.alarms)} if self.alarms else {}
        return alarms | {name: _short(value) for name, value in self._metrics.items()}

    def _write_file(self) -> None:
        if _path is None:
            return
        self._written = time.monotonic()
        made, left = self.n - self.initial, None
        if self.total is not None and made > 0:
            left = (self.total - self.n) * self.format_dict['elapsed'] / made
        content = {
            'stage': self.desc,
            'done': self.n,
            'total': self.total,
            'unit': self.unit,
            'time': time.time(),
            'left_s': left,
            'shown': self._shown(),
        }
        try:
            atomic_write(_path, json.dumps(content) + '\n')
        except OSError:
            pass  # a full disk ends the run where it matters


class _Lines:
    """A log in which every display of a bar becomes a line."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=self._file)

    def flush(self) -> None:
        self._file.flush()


def _short(value: float | int | str) -> str:
    return str(value) if isinstance(value, (str, int)) else f'{value:.3g}'
