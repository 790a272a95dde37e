"""A step's groups in RL: kept on disk, chosen for the loss, and what failed in them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.protocol import tool_of
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.batching.from_trajectories import response_tokens
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    LoadedPolicy,
    Session,
    append_trajectories,
    every_process,
    read_trajectories,
)
from sensesearch_jax.rewards.scorer import is_usable
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.seeds import hash_seeds
from sensesearch_jax.training.advantages import GROUP_EPSILON, ROUNDING
from sensesearch_jax.training.trainer import Learner


def rl_engines(session: Session, loaded: LoadedPolicy, learner: Learner) -> list[Engine]:
    """Engines for the rollouts of a step, with the learner's parameters.

    Each replica samples `rollout.groups` groups at once, or its share of all that this process may have
    under way if that is less.

    Args:
        session: of the run.
        loaded: the policy that was trained from.
        learner: whose parameters they sample with.
    """
    config = session.config.rl
    asked = multihost.rows_per_process(config.questions_per_step, 'rl.questions_per_step')
    return session.engines(
        loaded,
        asked=asked * (1 + config.max_staleness),
        groups=session.config.rollout.groups,
        members=members_at_once(config),
        sampling=Sampling(config.temperature),
        parameters=learner.all_parameters,
    )


def members_at_once(config: ConfigDict) -> int:
    """Members of a group that are sampled together.

    Args:
        config: the run's `rl`.

    Raises:
        UserError: `rl.first_members` is out of range.
    """
    if not 0 <= config.first_members <= config.members:
        raise UserError(
            f'rl.first_members is {config.first_members}; give 0, or at most rl.members {config.members}.'
        )
    return config.first_members or config.members


def is_whole(group: Sequence[Trajectory], config: ConfigDict) -> bool:
    """Whether a group has all its members, or as many as gave it spread.

    Args:
        group: its first members.
        config: the run's `rl`.
    """
    parts = len(group) % members_at_once(config) == 0
    return len(group) == config.members or (parts and has_spread(group))


def tools_down(session: Session, step: int, steps: int) -> UserError:
    """The error that ends a run whose tools failed on every trajectory, with the causes in the last
    step.

    Args:
        session: of the run.
        step: the last step, from 0.
        steps: how many steps in a row failed.
    """
    failures = Counter(map(cause_of_exclusion, read_trajectories(trajectories_path(session, step))))
    said = ', '.join(f'{what} ({count} times)' for what, count in failures.most_common() if what)
    health = session.client.health()
    answers = (
        f'does not answer: {health.message}'
        if isinstance(health, ToolFailure)
        else f'answers, with the back ends {", ".join(f"{tool}: {name}" for tool, name in health["backends"].items())}'
    )
    return UserError(
        f'No trajectory of the last {steps} steps could be used, since these failed: {said or "other hosts"}; '
        f'the tool server at {session.client.url} {answers}. Mend that and start again with the same '
        '--workdir, which asks those questions again (rl.max_failed_steps).'
    )


def cause_of_exclusion(trajectory: Trajectory) -> str:
    """The tool, or other cause, for which a trajectory is left out; '' if it counts."""
    if trajectory.state is SampleState.UNSCORABLE:
        return 'judge'
    if trajectory.state is SampleState.TOO_LONG:
        return (
            'room for the prompt or a response (rollout.prompt_capacity, rollout.suffix_capacity)'
        )
    if trajectory.state is not SampleState.INFRA_FAILED:
        return '' if math.isfinite(trajectory.reward['total']) else 'a reward that is not finite'
    last = trajectory.turns[-1] if trajectory.turns else None
    return (
        'upload of the picture'
        if last is None
        else f'{tool_of(last.action)}: {last.observation.parts[0]}'
    )


def chosen_groups(groups: Sequence[list[Trajectory]], count: int) -> list[list[Trajectory]]:
    """The groups that a step learns from: those with spread, the first sampled first, and as many of
    the others as are missing.
    """
    order = sorted(range(len(groups)), key=lambda i: not has_spread(groups[i]))[:count]
    return [groups[i] for i in sorted(order)]


def has_spread(group: Sequence[Trajectory]) -> bool:
    """Whether the rewards of a group's usable trajectories differ by more than rounding."""
    rewards = np.array([t.reward['total'] for t in group if is_usable(t)], np.float32)
    size = max(np.abs(rewards).max(initial=0), GROUP_EPSILON)
    return (
        bool(np.ptp(rewards) > ROUNDING * np.finfo(np.float32).eps * size)
        if len(rewards)
        else False
    )


def after_fatal_share(groups: Sequence[Sequence[Trajectory]], fatal_mistakes: int) -> float:
    """Share of the policy's tokens that are masked since they follow a fatal mistake."""
    everyone = [t for group in groups for t in group]
    written = sum(map(response_tokens, everyone))
    return 1 - sum(response_tokens(t, fatal_mistakes) for t in everyone) / max(written, 1)


class StepGroups:
    """A step's groups, of this start and of earlier ones, which have left theirs on disk.

    Those that are there are not sampled again, except where tools or judge had failed: these are
    sampled anew, with the same seeds.

    Args:
        session: of the run.
        step: from 0.
    """

    def __init__(self, session: Session, step: int):
        self.session, self.step = session, step
        self.path = path = trajectories_path(session, step)
        # a group that was torn is on disk in part, and later as a whole
        members: dict[str, dict[int, Trajectory]] = {}
        # Of a start with more processes, another may have sampled what is this one's now.
        of_others = [other for other in every_process(path, session) if other != path]
        for trajectory in itertools.chain(
            *(read_trajectories(other, mend=False) for other in of_others), read_trajectories(path)
        ):
            members.setdefault(trajectory.question.id, {})[trajectory.member] = trajectory
        self._found = {
            name: [group[g] for g in sorted(group)]
            for name, group in members.items()
            if is_whole([group[g] for g in sorted(group)], session.config.rl)
            and not any(t.state in ASKED_AGAIN for t in group.values())
        }
        self._asked: set[str] = set()

    def to_sample(self, asked: Sequence[Question]) -> list[Task]:
        """Tasks of those of the questions that are neither there nor asked already."""
        config, left = self.session.config, {*self._found, *self._asked}
        tasks = [
            Task(
                q,
                hash_seeds(config.seed, f'rl-{self.step}-{q.id}', config.rl.members),
                config.rl.first_members,
            )
            for q in asked
            if q.id not in left
        ]
        self._asked.update(task.question.id for task in tasks)
        return tasks

    def note(self, group: list[Trajectory]) -> None:
        """Keeps a finished group, on disk too."""
        append_trajectories(self.path, group)
        self._found[group[0].question.id] = group

    def has(self, asked: Sequence[Question]) -> bool:
        """Whether the groups of these questions are there."""
        return all(q.id in self._found for q in asked)

    def of(self, asked: Sequence[Question]) -> list[list[Trajectory]]:
        """The groups of these questions, in their order."""
        return [self._found[q.id] for q in asked]


def trajectories_path(session: Session, step: int) -> Path:
    """The file of a step's trajectories."""
    return session.workdir / 'rl' / 'trajectories' / f'{step:05d}.jsonl'


def prune_trajectories(session: Session, first: int) -> None:
    """Deletes this process's trajectories of the steps before `first`."""
    for file in trajectories_path(session, 0).parent.glob('*.jsonl'):
        if int(file.stem) < first:
            file.unlink()
