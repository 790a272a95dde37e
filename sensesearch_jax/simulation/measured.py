"""Rates of a machine, from a run of RL that was made on it, and how well they tell another run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.recipes.capacities import read_preprocessor
from sensesearch_jax.recipes.checkpoint_policy import policy_files
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.simulation.plans import Latency, PlannedGroup, recorded, with_latency
from sensesearch_jax.simulation.rates import AT_BEST, MEASURED, Rates
from sensesearch_jax.simulation.run import Pod, simulate

# Of the fit: rounds at most, the relative error that ends it, and the largest that it may end with.
# A lane that is free a moment earlier may take another turn, so that simulated times jump.
ROUNDS, CLOSE, FAR = 20, 1e-3, 0.05


class MeasuredRun(NamedTuple):
    """A run of RL on one host: its machine with rates still to be fitted, the trajectories of its
    steps, and mean seconds of their rollouts and of the whole of them, the first step aside.
    """

    pod: Pod
    steps: list[list[PlannedGroup]]
    rollout_s: float
    step_s: float


def read_run(workdir: str | Path, judge: Latency, seed: int) -> MeasuredRun:
    """A run of RL that kept its trajectories.

    Args:
        workdir: of the run.
        judge: latency of a verdict, which runs do not record.
        seed: of the verdicts.

    Raises:
        UserError: no such run, fewer than two steps in its metrics, or trajectories that are gone.
    """
    workdir = Path(workdir)
    lines = read_metrics(workdir / 'metrics.jsonl', 'rl')
    steps = recorded(workdir, judge, seed)
    if len(lines) < 2 or len(steps) != len(lines):
        raise UserError(
            f'{workdir} has metrics of {len(lines)} steps of RL and trajectories of {len(steps)}; give a run of two '
            'steps or more with rl.keep_trajectories=0.'
        )
    config = ConfigDict(json.loads((workdir / 'config.json').read_text()))
    # a run of configs/pocket.py trains what its own SFT made, in the base policy's sizes
    files = policy_files(config.policy)
    rates = Rates(PolicySizes.from_directory(files), MEASURED, AT_BEST, 1, 1, 1, config.rl.dtype)
    pod = Pod(
        config,
        read_preprocessor(files, config),
        rates,
        hosts=1,
        engines=config.rollout.engines,
        platform='cpu',
    )
    times = [[line['values'][name] for line in lines[1:]] for name in ('rollout_s', 'step_s')]
    return MeasuredRun(pod, steps, *map(float, np.mean(times, 1)))


def fitted(run: MeasuredRun) -> Rates:
    """Rates with which the simulated run takes as long as the measured one, in sampling and in the
    updates, or as nearly so as its jumps allow.

    Tools take as long as they did, so that what is fitted is the devices' time alone.
    """
    rates, tried = run.pod.rates, []
    for _ in range(ROUNDS):
        found = simulate(dataclasses.replace(run.pod, rates=rates), run.steps)
        # waiting does not shrink with the device's time, so that this falls short and comes near
        sampling = run.rollout_s / found.rollout_s
        training = (run.step_s - run.rollout_s) / (found.step_s - found.rollout_s)
        tried.append((max(abs(sampling - 1), abs(training - 1)), rates))
        if tried[-1][0] < CLOSE:
            break
        rates = dataclasses.replace(
            rates, sampling=rates.sampling * sampling, training=rates.training * training
        )
    off, nearest = min(tried, key=lambda pair: pair[0])
    if off > FAR:
        raise UserError(
            'The run spent its rollouts waiting for tools, so that its rates cannot be told; give one '
            'with fast tools.'
        )
    return nearest


def comparison(
    run: MeasuredRun, others: Sequence[MeasuredRun], tool: Latency, judge: Latency
) -> list[list[str]]:
    """Measured and simulated times of other runs on a machine, with rates that one run on it gave.

    Each is simulated twice: with its own trajectories and the latencies that it met, and with the
    first run's trajectories and drawn latencies, as one would before it is made.

    Args:
        run: that the rates are fitted to.
        others: the runs.
        tool: latency of the others' calls.
        judge: of their verdicts.

    Returns:
        Rows of (trajectories and latencies, time, measured, simulated, error).
    """
    rates, rows = fitted(run), []
    for other in others:
        drawn = with_latency(run.steps, tool, judge, run.pod.config.seed)
        for name, steps in (('its own', other.steps), ("the fitted run's, drawn", drawn)):
            found = simulate(dataclasses.replace(other.pod, rates=rates), steps)
            for what in ('rollout_s', 'step_s'):
                measured, said = getattr(other, what), getattr(found, what)
                error = f'{100 * (said / measured - 1):+.1f} %'
                rows.append([name, what, f'{measured:.1f}', f'{said:.1f}', error])
    return rows
