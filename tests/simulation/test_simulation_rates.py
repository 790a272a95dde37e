"""Times of programs are those that their sources have: docs/tpu_memory.md, docs/accelerator.jsonl, and a
measured run."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sensesearch_jax.agent.actions import Answer, TextSearch
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.recipes.session import append_trajectories
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.simulation import measured
from sensesearch_jax.simulation.measured import MeasuredRun, comparison, fitted, read_run
from sensesearch_jax.simulation.plans import Latency, Plan, PlannedGroup, PlannedTurn, recorded
from sensesearch_jax.simulation.rates import AT_BEST, CHIPS, GPUS, ON_H200, Rates, slice_of
from sensesearch_jax.simulation.run import simulate

DOCS = Path(__file__).parents[2] / 'docs'
AT_ONCE = Latency(0, 0)


def least(heading, topology, program):
    """The largest of the times that a row of docs/tpu_memory.md has under "At least"."""
    part = (DOCS / 'tpu_memory.md').read_text().partition(f'## 7B: {heading}')[2]
    row = re.search(rf'(?m)^\| {topology} \| {program} \|.*$', part)[0]
    return max(map(float, row.split('|')[-3].split('/')))


def test_at_best_programs_take_what_the_compiled_ones_cannot_beat():
    rates = Rates(RELEASED['7B'], CHIPS['v5p'], AT_BEST, 64, 4, 4, 'bfloat16')
    sampler, trainer = 'replica of 4 devices, 4 groups', '16 rows of 10752'
    assert rates.decode(4, 8, 64, 11_264, 21_568) == pytest.approx(
        least(sampler, 'v5p:4x4x4', 'decode'), rel=0.06
    )
    assert rates.prefill(4, 11_264) == pytest.approx(
        least(sampler, 'v5p:4x4x4', 'prefill'), rel=0.03
    )
    whole = rates.gradient(16, 10_752, 8, 16_896, 8 * 16_896, reference=False)
    assert whole == pytest.approx(least(trainer, 'v5p:4x4x4', 'rl gradient'), rel=0.02)
    with_reference = rates.gradient(16, 10_752, 8, 16_896, 8 * 16_896, reference=True)
    assert with_reference == pytest.approx(4 / 3 * whole)
    packed = rates.gradient(16, 10_752, 8, 16_896, 4 * 16_896, reference=False)
    assert 0.5 * whole < packed < 0.8 * whole


def test_with_what_the_h200_reached_its_programs_take_as_long_as_there():
    lines = map(json.loads, (DOCS / 'accelerator.jsonl').read_text().splitlines())
    seconds = {line['what'].split(',')[0]: line['seconds'] for line in lines if 'seconds' in line}
    rates = Rates(RELEASED['7B'], GPUS['h200'], ON_H200, 1, 1, 1, 'bfloat16')
    assert rates.vision(1, 10_549) == pytest.approx(seconds['3840 × 2160 pixels'], rel=0.02)
    assert rates.prefill(1, 10_580) == pytest.approx(seconds['prefill'], rel=0.02)
    assert rates.decode(8, 8, 1, 10_580, 543) == pytest.approx(seconds['decode'], rel=0.02)
    row = rates.gradient(1, 10_560, 8, 512, 8 * 512, reference=False)
    assert row == pytest.approx(seconds['RL'], rel=0.02)


def test_responses_take_longer_behind_long_caches_and_half_as_long_on_twice_the_devices():
    four, eight = (
        Rates(RELEASED['7B'], CHIPS['v5p'], ON_H200, 64, 4, n, 'bfloat16') for n in (4, 8)
    )
    assert four.extend(16, 1024, 30_000) > four.extend(16, 1024, 11_000)
    assert four.extend(16, 1024, 11_000) == pytest.approx(2 * eight.extend(16, 1024, 11_000))
    assert four.hand_over() == pytest.approx(2 * eight.hand_over())
    assert four.update() == eight.update()


def test_slices():
    assert slice_of('v5p:4x4x4') == (CHIPS['v5p'], 64, 4)
    assert slice_of('tpu7x:2x2x1') == (CHIPS['tpu7x'], 8, 8)
    assert slice_of('h200:2') == (GPUS['h200'], 2, 2)
    for wrong in ('v5p', 'v9:2x2', 'h200:many'):
        with pytest.raises(UserError, match=f"'{wrong}' is unknown"):
            slice_of(wrong)


def test_a_fit_finds_the_rates_of_the_run_it_is_given(pod, by_hand):
    truth = dataclasses.replace(pod.rates, sampling=3.0, training=0.5)
    steps = [[by_hand], [by_hand, by_hand]]
    made = simulate(dataclasses.replace(pod, rates=truth), steps)
    found = fitted(MeasuredRun(pod, steps, made.rollout_s, made.step_s))
    assert found.sampling == pytest.approx(3.0, rel=0.01)
    assert found.training == pytest.approx(0.5, rel=0.03)  # the hand-over is not scaled


def test_where_simulated_times_jump_a_fit_comes_as_near_as_it_can(pod, by_hand, monkeypatch):
    def jumps(pod, steps):
        rollout_s = pod.rates.sampling * (1.0 if pod.rates.sampling < 3 else 1.02)
        return SimpleNamespace(rollout_s=rollout_s, step_s=rollout_s + pod.rates.training)

    monkeypatch.setattr(measured, 'simulate', jumps)
    found = fitted(MeasuredRun(pod, [[by_hand]], 3.03, 5.03))  # which no rate gives
    assert jumps(dataclasses.replace(pod, rates=found), []).rollout_s == pytest.approx(
        3.06, rel=0.03
    )
    waits = MeasuredRun(pod, [[by_hand]], 1e-9, 5.0)
    monkeypatch.setattr(measured, 'simulate', lambda *_: SimpleNamespace(rollout_s=1, step_s=6))
    with pytest.raises(UserError, match='waiting for tools'):
        fitted(waits)


def test_what_a_fitted_machine_says_of_another_run_is_compared_with_it(pod, by_hand):
    late = by_hand._replace(
        members=[
            m._replace(turns=(m.turns[0]._replace(tool_s=9.0), *m.turns[1:]))
            for m in by_hand.members
        ]
    )
    runs = []
    for group in (by_hand, late):
        made = simulate(pod, [[group]] * 2)
        runs.append(MeasuredRun(pod, [[group]] * 2, made.rollout_s, made.step_s))
    wrong = runs[1]._replace(rollout_s=2 * runs[1].rollout_s)
    rows = comparison(runs[0], [runs[1], wrong], Latency(9, 9), Latency(2, 2))
    assert [row[:2] for row in rows[:4]] == [
        ['its own', 'rollout_s'],
        ['its own', 'step_s'],
        ["the fitted run's, drawn", 'rollout_s'],
        ["the fitted run's, drawn", 'step_s'],
    ]
    assert [row[-1] for row in rows[:2]] == ['+0.0 %'] * 2
    assert rows[4][-1] == '-50.0 %' and rows[4][3] == rows[0][3]
    assert float(rows[2][3]) == pytest.approx(runs[1].rollout_s, abs=1)  # a judge of 2 s for all


def test_a_recorded_run_is_planned_as_it_went(tmp_path, pod):
    question, picture, crop = Question('q', '?', ('a',)), ImageRef('a', 99, 98), ImageRef('b', 9, 8)
    seen = Observation(('Here:', crop), ok=True, kind='image_crop', latency_s=1.5)
    call = Turn([5, 6, 7], [0.0] * 3, '', TextSearch('x'), seen, [1] * 30)
    last = Turn([5, 6], [0.0] * 2, '', Answer('it'), None, [])

    def trajectory(member, turns, images, answer):
        state = SampleState.OK if answer else SampleState.TRUNCATED
        return Trajectory(
            question, member, 7, turns, state, [1] * 50, images, {'total': 1.0}, answer
        )

    group = [trajectory(1, [call, last], [picture, crop], 'it')]
    group += [trajectory(0, [last], [picture], None)]
    append_trajectories(tmp_path / 'rl' / 'trajectories' / '00000.jsonl', group)
    judge = Latency(3.0, 3.0)
    assert recorded(tmp_path, judge, 0) == [
        [
            PlannedGroup(
                50,
                (picture,),
                (
                    Plan((PlannedTurn(2),), None, 3.0),
                    Plan((PlannedTurn(3, 1.5, 30, (crop,)), PlannedTurn(2)), 'it', 3.0),
                ),
            )
        ]
    ]
    with pytest.raises(UserError, match='metrics of 0 steps of RL and trajectories of 1'):
        read_run(tmp_path, AT_ONCE, 0)
    more = {'policy': '', 'min_pixels': 0, 'max_pixels': 0}
    config = pod.config.to_dict() | more
    config['rollout']['engines'], config['rl']['dtype'] = 2, 'float32'
    (tmp_path / 'config.json').write_text(json.dumps(config))
    append_trajectories(tmp_path / 'rl' / 'trajectories' / '00001.jsonl', group)
    with MetricWriter(tmp_path / 'metrics.jsonl') as metrics:
        for step in (1, 2):
            metrics.write('rl', step, {'rollout_s': 7.0 / step, 'step_s': 9.0 / step})
    run = read_run(tmp_path, AT_ONCE, 0)
    assert (run.rollout_s, run.step_s, len(run.steps)) == (3.5, 4.5, 2)  # the first one compiles
    assert (run.pod.hosts, run.pod.engines, run.pod.platform) == (1, 2, 'cpu')
