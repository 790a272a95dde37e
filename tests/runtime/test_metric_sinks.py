"""Metrics in TensorBoard, Weights & Biases and MLflow: written and read back, and never in a run's way."""

import importlib
import time

import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import metric_sinks
from sensesearch_jax.runtime.metric_sinks import SINKS, Sinks, check_sinks
from sensesearch_jax.runtime.metrics import MetricWriter, read_metrics

CONFIG = {'seed': 0, 'sft': {'learning_rate': 1e-3, 'nothing': {}}}
VALUES = {'loss': 1.5, 'validation/avg@2': 0.25, 'broken': float('nan'), 'name': 'x'}


def written(path, names):
    """Two starts of a run, of which the second makes the second step again."""
    for steps in ((1, 2), (2, 3)):
        with MetricWriter(path / 'metrics.jsonl', Sinks(names, path, CONFIG)) as metrics:
            metrics.resume('sft', steps[0] - 1)
            for step in steps:
                metrics.write('sft', step, VALUES | {'loss': step / 2})


def test_tensorboard_shows_each_step_once(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(tmp_path, ['tensorboard'])
    events = EventAccumulator(str(tmp_path / 'tensorboard' / 'sft')).Reload()
    assert sorted(events.Tags()['scalars']) == ['loss', 'validation/avg@2']
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_mlflow_has_one_run_of_two_starts(tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file://{tmp_path / "mlruns"}')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    written(tmp_path, ['mlflow'])
    (run,) = MlflowClient().search_runs(['0'])
    assert run.data.params['sft.learning_rate'] == '0.001' and run.info.status == 'FINISHED'
    assert run.data.metrics == {'sft/loss': 1.5, 'sft/validation/avg_at_2': 0.25}
    history = MlflowClient().get_metric_history(run.info.run_id, 'sft/loss')
    assert sorted({(m.step, m.value) for m in history}) == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_wandb_writes_its_files_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    monkeypatch.setenv('WANDB_SILENT', 'true')
    written(tmp_path, ['wandb'])
    files = list((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))
    assert 'takes no more metrics' not in capsys.readouterr().err
    assert len({file.name for file in files}) == 1  # both starts have one id
    deadline = time.monotonic() + 60  # a process of its own writes them
    while not all(b'sft/loss' in file.read_bytes() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_that_fails_is_left_out_and_told_of_once(tmp_path, monkeypatch, capsys):
    class Failing:
        def __init__(self, workdir, config):
            pass

        def write(self, stage, step, values):
            raise ConnectionError('no network')

        def resume(self, stage, step):
            pass

    monkeypatch.setitem(SINKS, 'wandb', (Failing, 'json'))
    written(tmp_path, ['wandb'])
    assert len(read_metrics(tmp_path / 'metrics.jsonl')) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and 'wandb takes no more metrics' in said[0] and 'no network' in said[0]


def test_what_is_missing_is_said_before_the_run(monkeypatch):
    with pytest.raises(UserError, match="metrics.sinks 'tb' is unknown; choose from"):
        check_sinks(['tb'])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[mlflow\]', or leave it out"):
        check_sinks(['mlflow'])
    assert metric_sinks.check_sinks([]) is None
