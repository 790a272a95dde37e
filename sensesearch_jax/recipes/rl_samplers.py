"""RL's samplers: of one step after the other, or of the next steps while one is trained on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.recipes.rl_rollout import StepGroups, has_spread
from sensesearch_jax.recipes.session import LoadedPolicy, Session
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.replicas import copies_for, hand_over
from sensesearch_jax.rollout.scheduler import RolloutStatistics
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import stopping
from sensesearch_jax.runtime.threads import LAUNCHING
from sensesearch_jax.training.trainer import Learner

LOOK_S = 1.0  # seconds between two looks whether the sampler still works


class StepwiseSampler(contextlib.AbstractContextManager):
    """Samples a step with the parameters of its beginning, and leaves the devices to training then.

    Args:
        session: of the run.
        loaded: the policy that was trained from.
        features: of its vision tower.
        engines: that sample.
    """

    def __init__(
        self,
        session: Session,
        loaded: LoadedPolicy,
        features: FeatureStore,
        engines: Sequence[Engine],
    ):
        self.session, self.loaded, self.features, self.engines = session, loaded, features, engines

    def __exit__(self, *error) -> None:
        pass

    def begin(self, learner: Learner, step: int) -> None:
        """Gives the engines the learner's parameters, with the step, from 0, as their version."""
        hand_over(self.engines, learner.all_parameters, self.session.mesh, step)

    def sample(
        self, asked: Sequence[Question], step: int
    ) -> tuple[list[list[Trajectory]], RolloutStatistics]:
        """The groups of some of the step's questions, in their order, and what they cost; no groups
        where this process is told to stop, of which those that were finished are on disk.
        """
        groups = StepGroups(self.session, step)
        stream = self.session.stream(
            self.engines, self.loaded, self.features, to_stop=stopping.ordered, enough=has_spread
        )
        _, cost = stream.sample(groups.to_sample(asked), self.session.scorer(step), groups.note)
        return [] if stopping.ordered() else groups.of(asked), cost

    def end(self) -> None:
        """Gives the memory of caches and weights to the updates."""
        for engine in self.engines:
            engine.release()

    def metrics(self, groups: Sequence[Sequence[Trajectory]], step: int) -> dict[str, float]:
        """Nothing: sampling and training take turns."""
        return {}


class OverlappedSampler(contextlib.AbstractContextManager):
    """Samples the groups of the next steps while the last ones of a step end and while it is trained
    on, in a thread of its own.

    A step's questions are asked as soon as the policy is at most `rl.max_staleness` steps behind it,
    in the rows of the engines that are free, and each turn is written by the newest policy that there
    is. The caches and a copy of the weights stay on the devices all the time.

    Args:
        session: of the run.
        loaded: the policy that was trained from.
        features: of its vision tower.
        engines: whose twins sample; themselves are left to others, such as a validation.
        asked_at: the questions that this process asks at a step, from 0, at least the first round of
            them.
    """

    def __init__(
        self,
        session: Session,
        loaded: LoadedPolicy,
        features: FeatureStore,
        engines: Sequence[Engine],
        asked_at: Callable[[int], Sequence[Question]],
    ):
        self.session, self.features, self.asked_at = session, features, asked_at
        self.engines = [engine.twin() for engine in engines]
        for engine in (*engines, *self.engines):
            engine.release()
        self.stream = session.stream(
            self.engines, loaded, features, to_stop=stopping.ordered, enough=has_spread
        )
        self._steps: dict[int, StepGroups] = {}
        self._changed = threading.Condition()
        self._left, self._idle, self._since = 0, 0.0, time.monotonic()
        self._moments: list[tuple[float, float]] = []  # (time, idle seconds) of begin and end

    def __enter__(self) -> OverlappedSampler:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix='sampler')
        self._work = self._threads.submit(self.stream.run)
        return self

    def __exit__(self, *error) -> None:
        self.stream.queue.stop()
        self._threads.shutdown()
        del self.stream  # and the weights that it holds
        for engine in self.engines:
            engine.release()

    def begin(self, learner: Learner, step: int) -> None:
        """Gives the engines the learner's parameters, and asks what may be asked with them.

        Args:
            learner: as it is after `step` steps.
            step: from 0.
        """
        rl = self.session.config.rl
        self._moments = [self._moment()]
        self._steps = {later: groups for later, groups in self._steps.items() if later >= step}
        self.features.begin_step()
        self.stream.set_weights(copies_for(self.engines, copied(learner), self.session.mesh), step)
        for later in range(step, min(step + rl.max_staleness + 1, rl.steps)):
            asked = self.asked_at(later)
            self._ask(asked[: len(asked) // rl.sampling_rounds], later, urgent=False)

    def sample(
        self, asked: Sequence[Question], step: int
    ) -> tuple[list[list[Trajectory]], RolloutStatistics]:
        """As `StepwiseSampler.sample`; the cost is all that was spent since the last call."""
        self._ask(asked, step, urgent=True)
        groups = self._steps[step]
        with self._changed:
            while not (groups.has(asked) or self._work.done()):
                self._changed.wait(LOOK_S)
        if self._work.done():
            self._work.result()  # its error, if it has not been told to stop
        return groups.of(asked) if groups.has(asked) else [], self.stream.cost()

    def end(self) -> None:
        """The next steps' groups are sampled on."""
        self._moments.append(self._moment())

    def metrics(self, groups: Sequence[Sequence[Trajectory]], step: int) -> dict[str, float]:
        """Staleness of the step's groups, and how much sampling and training overlapped."""
        (began, idle_then), (sampled, idle_before), (now, idle) = *self._moments, self._moment()
        seconds = max(now - began, 1e-9)
        return {
            'overlap_share': (now - sampled - (idle - idle_before)) / seconds,
            'sampler_idle_share': (idle - idle_then) / seconds,
            **staleness(groups, step, self.session.config.rl.max_staleness),
        }

    def _ask(self, asked: Sequence[Question], step: int, urgent: bool) -> None:
        if step not in self._steps:
            self._steps[step] = StepGroups(self.session, step)
        groups = self._steps[step]
        tasks = groups.to_sample(asked)

        def note(group: list[Trajectory]) -> None:
            groups.note(group)
            with self._changed:
                self._count(-1)
                self._changed.notify_all()

        with self._changed:
            self._count(len(tasks))
        self.stream.add(tasks, self.session.scorer(step), note, urgent=urgent)

    def _count(self, more: int) -> None:
        """Counts further groups to sample; time in which none is left is idle."""
        now = time.monotonic()
        self._idle += 0.0 if self._left else now - self._since
        self._left, self._since = self._left + more, now

    def _moment(self) -> tuple[float, float]:
        with self._changed:
            self._count(0)
            return self._since, self._idle


Sampler = StepwiseSampler | OverlappedSampler


def sample_step(
    sampler: Sampler, rounds: int, asked: Sequence[Question], step: int
) -> tuple[list[list[Trajectory]], RolloutStatistics]:
    """The groups of a step, of as many rounds as it takes.

    Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): as long as fewer groups have spread in
    their rewards than a step is to have, further questions are asked, as many as are missing, in
    at most `rl.sampling_rounds` rounds. Each process looks at its own groups alone.

    Args:
        sampler: with the step's parameters.
        rounds: at most, `rl.sampling_rounds`.
        asked: this process's questions of the step, of all rounds; those of the first are asked
            in any case.
        step: from 0.

    Returns:
        (groups of all rounds in the order of the questions, what sampling cost); fewer groups where
        this process is told to stop, of which those that were finished are on disk.
    """
    wanted = len(asked) // rounds
    groups: list[list[Trajectory]] = []
    costs = []
    for _ in range(rounds):
        missing = wanted - sum(map(has_spread, groups))
        now = asked[len(groups) : len(groups) + missing]
        if not now or stopping.ordered():
            break
        found, cost = sampler.sample(now, step)
        groups += found
        costs.append(cost)
    return groups, sum_of_costs(costs)


def sum_of_costs(costs: Sequence[RolloutStatistics]) -> RolloutStatistics:
    """The costs of rounds one after another."""
    return RolloutStatistics(
        seconds=sum(c.seconds for c in costs),
        waiting_for_tools=sum(c.waiting_for_tools for c in costs),
        waiting_for_judge=sum(c.waiting_for_judge for c in costs),
        sampled_tokens=sum(c.sampled_tokens for c in costs),
        tokens_run=sum(c.tokens_run for c in costs),
        turn_seconds=[s for c in costs for s in c.turn_seconds],
    )


def copied(learner: Learner) -> nnx.State:
    """The learner's parameters as a sampler takes them, in memory that its updates do not reuse."""
    own = {id(leaf) for leaf in jax.tree.leaves(learner.parameters)}
    with LAUNCHING:
        return jax.tree.map(
            lambda leaf: jnp.copy(leaf) if id(leaf) in own else leaf, learner.all_parameters
        )


def staleness(groups: Sequence[Sequence[Trajectory]], step: int, most: int) -> dict[str, float]:
    """Metrics of the steps that the policy has made since it wrote what it learns from.

    Args:
        groups: of the step.
        step: from 0, which is the version of the policy that learns.
        most: `rl.max_staleness`.

    Returns:
        `staleness`, the mean over tokens, and `staleness/N`, the share of tokens that are N steps old.
    """
    tokens = np.zeros(most + 1)
    for turn in (turn for group in groups for t in group for turn in t.turns):
        tokens[min(max(step - turn.version, 0), most)] += len(turn.tokens)
    shares = tokens / max(tokens.sum(), 1)
    return {
        'staleness': float(shares @ np.arange(most + 1)),
        **{f'staleness/{n}': float(share) for n, share in enumerate(shares)},
    }
