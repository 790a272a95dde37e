"""The alarms of a stage as it runs: on its bar, in alarms.jsonl, by command or webhook, and as the
error that stops the run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.alarms import METRICS, RULES, Alarm, alarms_of
from sensesearch_jax.runtime.closing import Closing
from sensesearch_jax.runtime.journal import Journal
from sensesearch_jax.runtime.metrics import Record
from sensesearch_jax.runtime.notification import Notifier, webhook_address
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

FILE = 'alarms.jsonl'
CALLS = 'stop_on', 'command', 'webhook', 'deadline_s'  # fields of `alarms` that are no limits


class AlarmLog(Closing):
    """The alarms of one stage.

    A line of alarms.jsonl is {"time", "stage", "step", "alarm", "over", "sentence"}: an alarm is
    written when it is raised, and again, with `over` true, when what raised it is over. Processes
    that train together see the same metrics and raise the same alarms, of which one of them tells.

    Args:
        config: the run's `alarms`.
        workdir: of the run.
        stage: name of the stage, as in metrics.jsonl.
        step: last step that an earlier process made; what is behind it will be written again.
        tells: whether this process tells of the alarms.
        before: lines of metrics.jsonl of the stage up to that step, the same in all processes that
            train together.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        stage: str,
        step: int,
        tells: bool,
        before: Sequence[Record],
    ) -> None:
        self.workdir, self.stage, self.path = workdir.path, stage, workdir / FILE
        self.limits = {name: value for name, value in config.items() if name not in CALLS}
        self.stop_on = tuple(config.stop_on)
        # without lines of nothing that a rule reads, such as a validation's
        self.steps = [s for s in (_needed(r['values']) for r in before) if s]
        self.active = alarms_of(self.steps, self.limits)
        self.step, self.tells = step, tells
        if tells:
            _drop(self.path, stage, step)
        ways = (config.command, config.webhook) if tells else ('', '')
        self._notifier = Notifier(*ways, config.deadline_s)

    def note(self, step: int, values: Mapping[str, Any], bar: Progress) -> None:
        """Takes in the metrics of a step, and tells of the alarms that they raise.

        Args:
            step: within the stage.
            values: metrics, the same in all processes.
            bar: of the stage, which shows the alarms' names and sentences.
        """
        self.step = step
        self.steps.append(_needed(values))
        before, self.active = self.active, alarms_of(self.steps, self.limits)
        raised = [alarm for alarm in self.active if alarm.name not in {a.name for a in before}]
        over = [alarm for alarm in before if alarm.name not in {a.name for a in self.active}]
        if not self.tells:
            return
        bar.alarms = tuple(alarm.name for alarm in self.active)
        for alarm in raised:
            bar.say(f'ALARM {alarm.name} ({self.stage}, step {step}): {alarm.sentence}')
            self._notifier.send(
                {
                    'text': f'{self.workdir.name}, {self.stage}, step {step}: {alarm.sentence}',
                    'name': alarm.name,
                    'stage': self.stage,
                    'step': str(step),
                    'workdir': str(self.workdir),
                }
            )
        if raised or over:
            with Journal(self.path) as journal:
                for alarm, ended in [*((a, False) for a in raised), *((a, True) for a in over)]:
                    journal.append(self._line(alarm, ended), sync=True)

    def stopping(self) -> UserError | None:
        """The error that ends the run, if an alarm of `alarms.stop_on` is raised."""
        for alarm in self.active:
            if alarm.name in self.stop_on:
                return UserError(
                    f'The alarm {alarm.name} stopped the run at step {self.step} of {self.stage} '
                    f'(alarms.stop_on). {alarm.sentence} What was made is kept: mend that and start again '
                    'with the same --workdir, or with another alarms.stop_on to go on nevertheless.'
                )
        return None

    def close(self) -> None:
        """Waits for notifications that are under way."""
        self._notifier.close()

    def _line(self, alarm: Alarm, over: bool) -> dict[str, Any]:
        return {
            'time': time.time(),
            'stage': self.stage,
            'step': self.step,
            'alarm': alarm.name,
            'over': over,
            'sentence': alarm.sentence,
        }


def check_alarms(config: ConfigDict) -> None:
    """Whether the fields of the config's `alarms` can be kept to.

    Raises:
        UserError: a negative limit, an alarm that does not exist, or a webhook that is none.
    """
    for name, value in config.items():
        if name in ('window', 'reference') and value < 1:
            raise UserError(f'alarms.{name} is {value}; give 1 or more.')
        if name not in CALLS and not value >= 0:
            raise UserError(f'alarms.{name} is {value}; give 0 (no such alarm) or more.')
    for name in config.stop_on:
        if name not in RULES:
            raise UserError(f"alarms.stop_on has '{name}'; choose from {', '.join(RULES)}.")
    if not config.deadline_s > 0:
        raise UserError(f'alarms.deadline_s is {config.deadline_s}; give more than 0.')
    webhook_address(config.webhook)


def read_alarms(path: Path) -> list[dict[str, Any]]:
    """The lines of an alarms file, also one that is being written; none if it is missing."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b'\n') + 1].splitlines()]


def _needed(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that the rules read, as numbers."""
    return {
        name: math.nan if value is None else float(value)
        for name, value in values.items()
        if name.startswith(tuple(m for m in METRICS if m.endswith('/'))) or name in METRICS
    }


def _drop(path: Path, stage: str, step: int) -> None:
    """Drops the lines of a stage behind its restored step."""
    lines = read_alarms(path)
    kept = [line for line in lines if line['stage'] != stage or line['step'] <= step]
    if len(kept) < len(lines):
        atomic_write(path, ''.join(json.dumps(line) + '\n' for line in kept))
