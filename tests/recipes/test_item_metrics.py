"""Metrics of a stage whose items come one by one: a line for so many, and alarms that may stop it."""

import io
import runpy
from pathlib import Path

import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.item_metrics import item_metrics
from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime.alarm_log import read_alarms
from sensesearch_jax.runtime.metrics import MetricWriter, read_metrics
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir

CONFIG = Path(__file__).parents[2] / 'configs' / 'evaluate.py'


def play(folder, failures, before, metric='infra_failed', **alarms):
    """Items, of which some failed, or count for another metric, as a recipe takes them in."""
    config = runpy.run_path(str(CONFIG))['get_config']()
    config.alarms.update(alarms)
    with Workdir.open(folder, {}) as workdir, MetricWriter(workdir / 'metrics.jsonl') as metrics:
        session = Session(config, workdir, None, metrics, None)
        bar = Progress('evaluate it', 9, initial=before, file=io.StringIO())

        def measure(items):
            return {metric: sum(items) / len(items)}

        with bar, item_metrics(session, bar, before, 2, measure) as note:
            for failed in failures:
                note(failed)
                bar.update()
    return [(r['step'], r['values'][metric]) for r in read_metrics(folder / 'metrics.jsonl')]


def test_each_so_many_items_make_a_line_and_a_later_start_goes_on(tmp_path):
    assert play(tmp_path, [0, 0, 1, 0, 1], 0) == [(2, 0.0), (4, 0.5)]
    assert [a['step'] for a in read_alarms(tmp_path / 'alarms.jsonl')] == [4]
    # three were finished by then: the line of four is written anew
    assert play(tmp_path, [0, 0, 0], 3) == [(2, 0.0), (5, 0.0)]
    assert read_alarms(tmp_path / 'alarms.jsonl') == []


def test_an_alarm_stops_it_by_the_rule(tmp_path):
    with pytest.raises(UserError, match='tools_down stopped the run at step 2 of evaluate it'):
        play(tmp_path, [1, 1, 0, 0], 0, stop_on=('tools_down',))
    assert [r['step'] for r in read_metrics(tmp_path / 'metrics.jsonl')] == [2]


def test_items_of_another_kind_than_the_first_ones_are_no_collapse(tmp_path):
    """An evaluation asks one category after the other, of which some are well-formed more often."""
    limits = {'format': 0.5, 'tool_use': 0.2, 'reference': 1, 'window': 1}
    assert play(tmp_path, [1, 1, 0, 0], 0, metric='format', **limits) == [(2, 1.0), (4, 0.0)]
    assert read_alarms(tmp_path / 'alarms.jsonl') == []
