"""Alarms: each is raised by a series that has its fault, and by no other; a healthy run raises none."""

import math
import runpy
from pathlib import Path

import pytest

from sensesearch_jax.runtime.alarms import METRICS, RULES, alarms_of
from sensesearch_jax.runtime.metrics import read_metrics

ROOT = Path(__file__).parents[2]
LIMITS = {
    name: value
    for name, value in runpy.run_path(str(ROOT / 'configs' / 'rl.py'))[
        'get_config'
    ]().alarms.items()
    if not isinstance(value, (str, tuple))
}
# of configs/pocket.py: 24 steps of RL, in which tool use halves and the policy learns
HEALTHY = [r['values'] for r in read_metrics(Path(__file__).with_name('healthy_rl.jsonl'), 'rl')]
CALLS = [name for name in HEALTHY[0] if name.startswith('tool_calls/')]


def names(steps, **limits):
    return [alarm.name for alarm in alarms_of(steps, LIMITS | limits)]


def spoiled(change, count):
    """The healthy run with `count` more steps: its last one with some metrics changed."""
    return HEALTHY + [HEALTHY[-1] | change] * count


FAULTS = {  # metrics that are wrong, and from which of the wrong steps on it is known
    'tools_down': ({'infra_failed': 0.6}, 1),
    'judge_down': ({'unscorable': 0.5}, 1),
    'tool_use': (dict.fromkeys(CALLS, 0.0), 2),
    'same_answer': ({'same_answer': 0.9}, 2),
    'format': ({'format': 0.2}, 2),
    'entropy': ({'entropy': 0.001}, 2),
    'repetition': ({'repetition': 0.9}, 2),
    'length': ({'response_length': 1e4}, 1),
    'sampler_gap': ({'sampler_gap': 0.3}, 1),
    'reward': ({'reward': 1.0, 'accuracy': 0.05}, 3),
    'non_finite': ({'skipped_updates': 1.0}, 1),
    'slow_host': ({'slowest_host': 3.0, 'slowest_process': 2.0}, 2),
}


def test_there_is_a_fault_for_every_rule_and_a_real_metric_in_every_place():
    assert list(FAULTS) == list(RULES)
    written = {'tool_calls/' if name in CALLS else name for name in HEALTHY[0]}
    assert written | {'slowest_host', 'slowest_process'} == set(METRICS)


def test_a_healthy_run_raises_no_alarm_at_any_step():
    assert len(HEALTHY) == 24
    for made in range(len(HEALTHY) + 1):
        assert names(HEALTHY[:made]) == []


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_raises_its_alarm_and_no_other(name):
    change, known = FAULTS[name]
    for count in range(1, known):
        assert names(spoiled(change, count)) == []
    assert names(spoiled(change, known)) == [name]
    assert names(spoiled(change, known) + HEALTHY[-4:]) == []  # it is over when the fault is


@pytest.mark.parametrize('name', FAULTS)
def test_the_sentence_names_the_field_and_the_field_switches_it_off(name):
    change, known = FAULTS[name]
    (alarm,) = alarms_of(spoiled(change, known), LIMITS)
    (field,) = [f for f in LIMITS if f'(alarms.{f} {LIMITS[f]:g})' in alarm.sentence]
    assert alarm.sentence.endswith('.') and '\n' not in alarm.sentence
    assert names(spoiled(change, known), **{field: 0}) == []


@pytest.mark.parametrize(
    'change', [{'entropy': 3.0}, {'response_length': 5.0}], ids=['entropy', 'length']
)
def test_a_range_has_two_ends(change):
    name = 'length' if 'response_length' in change else 'entropy'
    assert names(spoiled(change, 2)) == [name]


def test_a_run_that_begins_badly_is_compared_with_limits_alone():
    """Relations to the first steps are silent until those have been made, and others behind them."""
    bad = {name: value for change, _ in FAULTS.values() for name, value in change.items()}
    steps = [HEALTHY[0] | bad] * 5
    assert names(steps) == [
        'tools_down', 'judge_down', 'same_answer', 'repetition', 'sampler_gap', 'non_finite', 'slow_host',
    ]  # fmt: skip


def test_steps_without_a_metric_or_with_one_that_is_not_finite_raise_nothing():
    steps = HEALTHY + [dict.fromkeys(HEALTHY[0], math.nan)] * 6
    assert names(steps) == []
    assert names([{'loss': 1.0}] * 9) == []


def test_sft_has_limits_of_its_own():
    """Of another stage's limits there are none in its config, and so no alarm."""
    limits = {'window': 2, 'non_finite': 1, 'slow_host': 2.0}
    change, _ = FAULTS['slow_host']
    steps = [{'loss': 1.0, 'infra_failed': 1.0, 'skipped_updates': 1.0} | change] * 9
    assert [alarm.name for alarm in alarms_of(steps, limits)] == ['non_finite', 'slow_host']


def test_the_entropy_of_demonstrations_may_fall():
    """SFT has no reward; in the main job it shares the limits of RL."""
    assert names([{'entropy': 0.5}] * 8 + [{'entropy': 0.03}] * 2) == []
