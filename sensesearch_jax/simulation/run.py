"""A simulated run of RL: hosts sample, all of them train, and the time of each is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.batching.from_trajectories import length
from sensesearch_jax.batching.length_bucketing import FINE, bucket
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.recipes.rows import PROMPT_STEP, SUFFIX_STEP
from sensesearch_jax.simulation.clock import Segment
from sensesearch_jax.simulation.hosts import Host
from sensesearch_jax.simulation.plans import PlannedGroup
from sensesearch_jax.simulation.rates import Rates
from sensesearch_jax.simulation.stand_ins import TimedEngine
from sensesearch_jax.training.flops import per_chip_hour

KINDS = (
    'decode', 'prefill', 'extend', 'vision', 'training', 'tools', 'judge', 'slowest host',
    'hand-over', 'checkpoint', 'compile',
)  # fmt: skip
"""The kinds of time of a host: work, then waiting, then the rest."""


@dataclass(frozen=True)
class Pod:
    """The machine and how it is used.

    Args:
        config: of the run, with `agent`, `rl`, `rollout` and `tools`.
        preprocessor: of the policy's pictures.
        rates: of the programs.
        hosts: processes, each with its share of a step's questions.
        replicas: of the policy on a host, each of which samples `rollout.groups` groups at once.
        engines: that share out a replica's groups.
        staleness: steps whose questions are sampled before the weights are those of the step before
            them; 0: a step is sampled when the one before it is trained.
        platform: 'tpu', 'gpu' or 'cpu', by which the engine chooses lanes, and attention what it reads.
        compile_s: seconds of compiling a program; 0: none is new, or a cache has it.
    """

    config: ConfigDict
    preprocessor: Preprocessor
    rates: Rates
    hosts: int
    replicas: int = 1
    engines: int = 1
    staleness: int = 0
    platform: str = 'tpu'
    compile_s: float = 0.0


@dataclass(frozen=True)
class StepTimes:
    """Moments of a step, in seconds since the run began."""

    began: float  # when its predecessor was trained
    sampled: float  # its last group was finished, on the slowest host
    ended: float


@dataclass(frozen=True)
class Simulated:
    """A simulated run.

    Args:
        pod: the machine.
        steps: moments of each.
        segments: by host and engine.
        programs: that a host has compiled.
    """

    pod: Pod
    steps: list[StepTimes]
    segments: list[list[list[Segment]]]
    programs: int

    @property
    def window(self) -> tuple[float, float]:
        """The time that counts: without a first step, which compiles and has no predecessor, and
        without the last ones, which have no successor.
        """
        last = len(self.steps) - 1 - self.pod.staleness
        return self.steps[min(1, last)].began, self.steps[last].ended

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        start, end = self.window
        return (end - start) / sum(start <= s.began < end for s in self.steps)

    @property
    def rollout_s(self) -> float:
        """Mean seconds from a step's beginning until its groups are finished."""
        start, end = self.window
        return float(np.mean([s.sampled - s.began for s in self.steps if start <= s.began < end]))

    @property
    def per_chip_hour(self) -> float:
        """Trajectories for an hour of one device."""
        rl = self.pod.config.rl
        return per_chip_hour(
            rl.questions_per_step * rl.members, self.step_s, self.pod.rates.devices
        )

    def shares(self) -> dict[str, float]:
        """Shares of the engines' time, by kind."""
        start, end = self.window
        total: Counter[str] = Counter()
        engines = [engine for host in self.segments for engine in host]
        for segment in (s for engine in engines for s in engine):
            total[segment.kind] += max(0.0, min(segment.end, end) - max(segment.start, start))
        return {kind: float(total[kind] / (len(engines) * (end - start))) for kind in KINDS}


def simulate(pod: Pod, steps: Sequence[Sequence[PlannedGroup]]) -> Simulated:
    """Runs all steps on the clock.

    With a staleness above 0, a step's questions are opened while that many steps before it are still
    sampled or trained; all samplers pause while the devices train, and go on with the new weights.

    Args:
        pod: the machine.
        steps: the groups of each step.

    Raises:
        UserError: the hosts do not divide the questions of a step.
    """
    config = pod.config
    if any(len(step) % pod.hosts for step in steps) or config.rl.micro_batch % pod.hosts:
        raise UserError(
            f'{pod.hosts} hosts do not share out {len(steps[0])} questions of a step and '
            f'{config.rl.micro_batch} rows of a micro-batch evenly; change rl.questions_per_step, '
            'rl.micro_batch or the slice.'
        )
    hosts, made = _hosts(pod, len(steps[0]) // pod.hosts), []
    now, generator = 0.0, np.random.default_rng(config.seed)

    def ask(number: int) -> None:
        if number < len(steps):
            each = len(steps[number]) // pod.hosts
            for h, host in enumerate(hosts):
                host.ask(number, steps[number][h * each : (h + 1) * each])

    for number in range(pod.staleness):
        ask(number)
    for number in range(len(steps)):
        ask(number + pod.staleness)
        began = now
        for host in hosts:
            host.sample(number)
        sampled = max(host.finished[number] for host in hosts)
        for host in hosts:
            host.go_on(sampled)
        now = max(sampled, *(host.now for host in hosts))
        batches = _micro_batches(config, [host.groups(number) for host in hosts], generator)
        for host in hosts:
            host.idle('slowest host', now)
        for kind, seconds in _training(pod, number, batches, hosts[0].clock.known):
            now += seconds
            for host in hosts:
                host.idle(kind, now)
        made.append(StepTimes(began, sampled, now))
    return Simulated(
        pod, made, [[r.segments for r in h.runs] for h in hosts], len(hosts[0].clock.known)
    )


def _hosts(pod: Pod, questions: int) -> list[Host]:
    rl, room = pod.config.rl, pod.config.rollout
    groups = min(-(-questions * (1 + pod.staleness) // pod.replicas), room.groups)
    engines = min(pod.engines, groups)
    policy = abstract_policy(pod.rates.sizes)
    engine = TimedEngine(
        policy,
        pod.rates,
        platform=pod.platform,
        groups=-(-groups // engines),
        members=rl.members,
        prompt_capacity=room.prompt_capacity,
        suffix_capacity=room.suffix_capacity,
        chunk=room.chunk,
        extend_lanes=room.extend_lanes,
        extend_tokens=room.extend_tokens,
        cache_dtype=room.cache_dtype,
    )
    return [Host(pod, policy, engine, engines * pod.replicas) for _ in range(pod.hosts)]


def _micro_batches(
    config: ConfigDict,
    groups: Sequence[Sequence[Sequence[Trajectory]]],
    generator: np.random.Generator,
) -> list[list[tuple[int, int, int]]]:
    """Minibatches of micro-batches as `recipes.rl_update.update` makes them: lengths of prompts, of
    suffixes, and of all suffixes of a row, as they are padded on every host.
    """
    rl, rows = config.rl, config.rl.micro_batch // len(groups)
    found = []
    for _ in range(rl.epochs):
        count = min(rl.minibatches, len(groups[0]))
        for part in np.array_split(generator.permutation(len(groups[0])), count):
            padded = []
            for host in groups:
                sizes = [[1 + length(t) for t in host[i]] for i in part]
                prompts = [len(host[i][0].prompt_tokens) - 1 for i in part]
                size = sum if rl.pack_step else max
                order = sorted(range(len(part)), key=lambda i: size(sizes[i]))
                for first in range(0, len(order), rows):
                    of_rows = order[first : first + rows]
                    padded.append(
                        (
                            first,
                            bucket(max(prompts[i] for i in of_rows), PROMPT_STEP, FINE),
                            bucket(max(max(sizes[i]) for i in of_rows), SUFFIX_STEP, FINE),
                            max(sum(sizes[i]) for i in of_rows),
                        )
                    )
            alike = [
                [p[1:] for p in padded if p[0] == first] for first in sorted({p[0] for p in padded})
            ]
            found.append([tuple(map(max, zip(*rows_of))) for rows_of in alike])
    return found


def _training(
    pod: Pod, number: int, minibatches: Iterable[Iterable[tuple[int, int, int]]], known: set
) -> Iterable[tuple[str, float]]:
    """Kinds and seconds of what follows a step's rollouts."""
    rl, rates = pod.config.rl, pod.rates
    for minibatch in minibatches:
        for prompt, suffix, places in minibatch:
            run = bucket(places, rl.pack_step, FINE) if rl.pack_step else rl.members * suffix
            shape = rl.micro_batch, prompt, rl.members, suffix, run
            if ('gradient', shape) not in known:
                known.add(('gradient', shape))
                yield 'compile', pod.compile_s
            yield 'training', rates.gradient(*shape, reference=bool(rl.kl_coefficient))
        yield 'training', rates.update()
    if (number + 1) % rl.checkpoint_every == 0:
        yield 'checkpoint', rates.checkpoint()
    yield 'hand-over', rates.hand_over()
