"""Progress of a loop: a bar with the remaining time on a terminal, plain lines in a log file, and a
file that others may read.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

from sensesearch_jax.runtime.workdir import atomic_write

FILE_S = 2.0  # seconds between two writings of the file

_path: Path | None = None  # of the file, where `keep_file` has named one


def keep_file(path: Path | None) -> None:
    """From now on every loop of this process writes its progress to a file, as one JSON object:
    `stage`, `done`, `total` (null if unknown), `unit`, `time` of the last step (seconds since 1970),
    `left_s` (remaining seconds, null if unknown) and `shown`, the metrics beside the bar as texts.
    None ends that.
    """
    global _path
    _path = path


class Progress:
    """Progress display: steps done, remaining time and a few metrics.

    On a terminal this is tqdm's bar. Elsewhere (CI, nohup) a bar would fill the log with carriage
    returns, so a plain line is printed every `interval_s` seconds instead, and one at the end:

        rl: 12/100 [01:10<08:33, 5.8s/step] reward=0.61

    Usable as a context manager. Not for several threads.

    Attributes:
      alarms: names of the alarms that are raised, shown before the metrics.
    """

    alarms: tuple[str, ...] = ()

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
        self._description = description
        self._total = total
        self._unit = unit
        self._initial = self._done = initial
        self._interval_s = interval_s
        self._metrics: dict[str, Any] = {}
        self._started = self._printed = time.monotonic()
        self._written = 0.0
        self._bar = None
        if self._file.isatty():
            self._bar = tqdm(
                desc=description,
                total=total,
                initial=initial,
                unit=unit,
                file=self._file,
                dynamic_ncols=True,
            )
        self._write_file()

    def update(self, steps: int = 1, **metrics: float | str) -> None:
        """Counts steps as done and shows the metrics beside the bar until the next ones.

        Args:
          steps: how many steps were done since the last call.
          **metrics: a few numbers or short texts.
        """
        self._done += steps
        if metrics:
            self._metrics = metrics
        if self._bar is not None:
            self._bar.set_postfix(self._shown(), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._printed >= self._interval_s:
            self._print_line()
        if time.monotonic() - self._written >= FILE_S:
            self._write_file()

    def say(self, sentence: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(sentence, file=self._file)
        else:
            print(sentence, file=self._file, flush=True)

    def close(self) -> None:
        """Shows the last state; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._started is not None:
            self._print_line()
        if self._started is not None:
            self._write_file()
        self._started = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._printed - self._started,
            prefix=self._description,
            unit=self._unit,
            initial=self._initial,
            postfix=', '.join(f'{name}={value}' for name, value in self._shown().items()) or None,
            bar_format='{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]',
        )
        print(line, file=self._file, flush=True)

    def _shown(self) -> dict[str, str]:
        alarms = {'ALARM': ' '.join(self.alarms)} if self.alarms else {}
        return alarms | {name: _short(value) for name, value in self._metrics.items()}

    def _write_file(self) -> None:
        if _path is None:
            return
        self._written = now = time.monotonic()
        made = self._done - self._initial
        left = None
        if self._total is not None and made > 0:
            left = (self._total - self._done) * (now - self._started) / made
        content = {
            'stage': self._description,
            'done': self._done,
            'total': self._total,
            'unit': self._unit,
            'time': time.time(),
            'left_s': left,
            'shown': self._shown(),
        }
        try:
            atomic_write(_path, json.dumps(content) + '\n')
        except OSError:
            pass  # a full disk ends the run where it matters


def _short(value: float | int | str) -> str:
    return str(value) if isinstance(value, (str, int)) else f'{value:.3g}'
