"""Other places that a run's metrics go to, beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each is an extra of this package, and is imported only where the config's `metrics.sinks` names it.
Accounts, addresses and projects are those of its own environment variables.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.workdir import atomic_write, flat

Values = Mapping[str, float]  # finite numbers by name


class Sink(Protocol):
    """A place that metrics go to. Whatever it raises, the run goes on without it."""

    def write(self, stage: str, step: int, values: Values) -> None:
        """Takes the numbers of a step of a stage."""

    def resume(self, stage: str, step: int) -> None:
        """Hears that the steps of a stage beyond this one are made again."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Event files in workdir/tensorboard/STAGE, without TensorFlow; `tensorboard --logdir` shows them.

    Args:
        workdir: of the run.
        config: of the run, which TensorBoard has no place for.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._open = event_pb2, summary_pb2, EventFileWriter
        self._folder, self._files = workdir / 'tensorboard', {}

    def _file(self, stage: str) -> Any:
        if stage not in self._files:
            self._files[stage] = self._open(str(self._folder / stage))
        return self._files[stage]

    def write(self, stage: str, step: int, values: Values) -> None:
        """See `Sink`."""
        scalars = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        summary = self._summary.Summary(value=scalars)
        file = self._file(stage)
        file.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))
        file.flush()

    def resume(self, stage: str, step: int) -> None:
        """See `Sink`; TensorBoard leaves out what an earlier file has from the next step on."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        event = self._event.Event(wall_time=time.time(), step=step + 1, session_log=start)
        self._file(stage).add_event(event)

    def close(self) -> None:
        """See `Sink`."""
        for file in self._files.values():
            file.close()


class WeightsAndBiases:
    """One run of Weights & Biases for the workdir, resumed whenever the workdir's run goes on.

    Each stage has a step of its own, which its curves are drawn over.

    Args:
        workdir: of the run.
        config: of the run.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        import wandb

        self._id = workdir / 'wandb.json'
        known = json.loads(self._id.read_text()) if self._id.is_file() else {}
        self._run = wandb.init(
            id=known.get('id'), resume='allow', name=workdir.name, config=dict(config)
        )
        atomic_write(self._id, json.dumps({'id': self._run.id}) + '\n')
        self._stages: set[str] = set()

    def write(self, stage: str, step: int, values: Values) -> None:
        """See `Sink`."""
        if stage not in self._stages:
            self._run.define_metric(f'{stage}/*', step_metric=f'{stage}/step')
            self._stages.add(stage)
        named = {f'{stage}/{name}': value for name, value in values.items()}
        self._run.log(named | {f'{stage}/step': step})

    def resume(self, stage: str, step: int) -> None:
        """See `Sink`; steps that are made again are there twice, and equal."""

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


class MLflow:
    """One run of MLflow for the workdir, at the tracking server that MLFLOW_TRACKING_URI names.

    Args:
        workdir: of the run.
        config: of the run, whose fields are the run's parameters.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        import mlflow

        self._mlflow, place = mlflow, workdir / 'mlflow.json'
        known = json.loads(place.read_text())['run'] if place.is_file() else None
        self._run = mlflow.start_run(run_id=known, run_name=workdir.name).info.run_id
        if known is None:
            atomic_write(place, json.dumps({'run': self._run}) + '\n')
            mlflow.log_params({name: str(value)[:500] for name, value in flat(config).items()})

    def write(self, stage: str, step: int, values: Values) -> None:
        """See `Sink`; '@' is none of the characters that MLflow's names may have."""
        named = {f'{stage}/{name}'.replace('@', '_at_'): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step, run_id=self._run)

    def resume(self, stage: str, step: int) -> None:
        """See `Sink`; steps that are made again are there twice, and equal."""

    def close(self) -> None:
        """See `Sink`."""
        self._mlflow.end_run()


# name -> (class, the module that it needs); the name is that of the extra as well
SINKS: dict[str, tuple[Callable[[Path, Mapping[str, Any]], Sink], str]] = {
    'tensorboard': (TensorBoard, 'tensorboard'),
    'wandb': (WeightsAndBiases, 'wandb'),
    'mlflow': (MLflow, 'mlflow'),
}


def check_sinks(names: Sequence[str]) -> None:
    """Whether there are such sinks, and what they need is installed.

    Raises:
        UserError: one is unknown, or its extra is missing.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(f"metrics.sinks '{name}' is unknown; choose from {list(SINKS)}.")
        if importlib.util.find_spec(SINKS[name][1]) is None:
            raise UserError(
                f"metrics.sinks '{name}' needs a package that is not installed: pip install -e '.[{name}]', or leave "
                'it out.'
            )


class Sinks:
    """The sinks of a run. One that fails is told of once, and left out from then on.

    Args:
        names: of them, see `SINKS`.
        workdir: of the run.
        config: of the run.
    """

    def __init__(self, names: Sequence[str], workdir: Path, config: Mapping[str, Any]):
        self._sinks: dict[str, Sink] = {}
        for name in names:
            self._guarded(name, lambda name=name: self._open(name, workdir, config))

    def _open(self, name: str, workdir: Path, config: Mapping[str, Any]) -> None:
        self._sinks[name] = SINKS[name][0](workdir, config)

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Hands the finite numbers of a step to each sink.

        Args:
            stage: name of the stage.
            step: step within the stage.
            values: as JSON has them.
        """
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for name, sink in list(self._sinks.items()):
            self._guarded(name, lambda sink=sink: sink.write(stage, step, numbers))

    def resume(self, stage: str, step: int) -> None:
        """Tells each sink that the steps of a stage beyond this one are made again."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, lambda sink=sink: sink.resume(stage, step))

    def close(self) -> None:
        """Closes each sink; a second call does nothing."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, sink.close)
        self._sinks = {}

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a logger does, training goes on
            self._sinks.pop(name, None)
            print(
                f'sensesearch_jax: {name} takes no more metrics of this run ({type(error).__name__}: {error}); '
                'metrics.jsonl has all of them.',
                file=sys.stderr,
            )
