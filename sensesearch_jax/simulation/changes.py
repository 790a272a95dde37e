"""Changes to how a machine is used, and a table of their gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sensesearch_jax.simulation.plans import Latency, PlannedGroup, with_latency
from sensesearch_jax.simulation.run import KINDS, Pod, Simulated, simulate

AT_ONCE = Latency(0, 0)
COLUMNS = ('Change', 'Step, s', 'Times', *KINDS, 'Trajectories per chip-hour', 'Programs')


class Change(NamedTuple):
    """A machine that is used otherwise, and other latencies of tools and judge; None: as they were."""

    name: str
    pod: Pod
    tool: Latency | None = None
    judge: Latency | None = None


def changes(pod: Pod) -> Iterator[Change]:
    """Changes to a machine one by one, then in a row, each on top of those since 'twice groups'."""
    change = dataclasses.replace
    yield Change('as it is', pod)
    yield Change('judge at once', pod, None, AT_ONCE)
    yield Change('tools and judge at once', pod, AT_ONCE, AT_ONCE)
    yield Change('rl.max_staleness 1', change(pod, staleness=1))
    wide = 4 * pod.config.rollout.extend_lanes
    yield Change(f'rollout.extend_lanes {wide}', with_rollout(pod, extend_lanes=wide))
    pod = with_rollout(pod, groups=2 * pod.config.rollout.groups)
    yield Change('twice rollout.groups', pod)
    yield Change('all of these', change(pod, staleness=1))


def with_rollout(pod: Pod, **values: int) -> Pod:
    """The machine with other settings of `rollout`."""
    config = pod.config.copy_and_resolve_references()
    config.rollout.update(values)
    return dataclasses.replace(pod, config=config)


def simulated(
    every: Iterator[Change], steps: Sequence[Sequence[PlannedGroup]], seed: int
) -> Iterator[tuple[str, Simulated]]:
    """Name and run of each change, on the same trajectories.

    Args:
        every: the changes.
        steps: the groups of each step.
        seed: of latencies that are drawn anew.
    """
    for name, pod, tool, judge in every:
        yield name, simulate(pod, with_latency(steps, tool, judge, seed))


def row(name: str, run: Simulated, first: Simulated) -> list[str]:
    """Cells under COLUMNS; of kinds of time, the seconds of a step.

    Args:
        name: of the change.
        run: with it.
        first: without any.
    """
    kinds = (f'{share * run.step_s:.1f}' for share in run.shares().values())
    times = f'{first.step_s / run.step_s:.2f}'
    return [name, f'{run.step_s:.0f}', times, *kinds, f'{run.per_chip_hour:.0f}', str(run.programs)]
