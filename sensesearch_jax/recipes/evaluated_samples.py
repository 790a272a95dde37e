"""Samples of an evaluation: asked, scored and kept on disk as they end, so that an interrupted one
goes on, and gathered from all processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.evaluation.behaviour import behaviour
from sensesearch_jax.evaluation.modes import AGENT, mode_environment, mode_scorer
from sensesearch_jax.evaluation.served_agent import Conditions
from sensesearch_jax.recipes.evaluated_agents import Agent
from sensesearch_jax.recipes.item_metrics import item_metrics
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    Session,
    append_trajectories,
    every_process,
    read_trajectories,
    rollout_limits,
)
from sensesearch_jax.rollout.scheduler import RolloutLimits
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir

EVALUATION = 'evaluation'  # the folder of an evaluation's trajectories, within the workdir
Sample = tuple[str, str, int]  # set, id of the question, number of the sample


@dataclass(frozen=True)
class Setting:
    """Conditions under which a run asks its questions.

    Args:
        mode: 'direct', 'rag' or 'agent'.
        samples: of each question.
        tools: that are switched on in mode 'agent'.
    """

    mode: str
    samples: int
    tools: tuple[str, ...]

    def environment(self, session: Session) -> Environment:
        """The environment of the mode."""
        return mode_environment(self.mode, session.environment(self.tools))

    def limits(self, agent: ConfigDict) -> RolloutLimits:
        """The config's limits; one turn where there are no tools."""
        limits = rollout_limits(agent)
        return limits if self.mode == AGENT else dataclasses.replace(limits, max_turns=1)


def evaluate(
    session: Session,
    agent: Agent,
    questions: Sequence[Question],
    folder: str,
    name: str,
    setting: Setting,
) -> list[Trajectory]:
    """Scored trajectories: all samples of the first question, of the second, and so on.

    Goes on where it was interrupted, by sample, in whichever process that was; one on which tools or
    judge had failed is asked again then. Several processes deal out the questions, each to its own
    devices and tool server. In the folder EVALUATION, behaviour is in metrics.jsonl as stage
    'evaluate NAME', once for as many samples as are asked at once.

    Args:
        session: of the run.
        agent: that answers.
        questions: of all processes.
        folder: of the trajectories, within the workdir.
        name: of the agent, in the summary and as the file <name>.jsonl in the folder.
        setting: how they are asked.

    Returns:
        The trajectories: of all processes in the first one, elsewhere this process's.

    Raises:
        UserError: an alarm of `alarms.stop_on` was raised.
    """
    config = session.config
    path = session.workdir / folder / f'{file_name(name)}.jsonl'
    done = {sample_of(t): t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    own = samples_of(multihost.local_items(questions), setting.samples)
    missing = {(q.source, q.id, member): q for q, member in own}
    missing = {sample: q for sample, q in missing.items() if sample not in done}
    # Of a start with other processes, another may have asked what is this one's now.
    of_others = {
        sample_of(t): dataclasses.replace(t, question=missing[sample_of(t)])
        for other in every_process(path, session)
        for t in (read_trajectories(other, mend=False) if other != path else ())
        if sample_of(t) in missing and t.state not in ASKED_AGAIN
    }
    if of_others:
        append_trajectories(path, of_others.values())
        done |= of_others
    left = [(q, member) for q, member in own if (q.source, q.id, member) not in done]
    if multihost.global_max(len(left)):  # making the engines takes all processes
        scorer = mode_scorer(setting.mode, session.scorer())
        unit = 'sample' if setting.samples > 1 else 'question'
        with contextlib.ExitStack() as stack:
            before = len(own) - len(left)
            bar = stack.enter_context(
                Progress(f'evaluate {name}', len(own), initial=before, unit=unit)
            )
            # a validation is a line of its stage's metrics, and has none of its own
            measured = None
            if folder == EVALUATION:
                size = config.evaluate.lanes
                measures = item_metrics(session, bar, before, size, lambda t: behaviour([t]))
                measured = stack.enter_context(measures)
            right = [t.reward['accuracy'] for t in done.values()]

            def note(trajectory: Trajectory) -> None:
                if trajectory.answer is None:  # in one turn, a reply without tags is the answer
                    trajectory.answer = scorer.answer(trajectory)
                append_trajectories(path, [trajectory])
                done[sample_of(trajectory)] = trajectory
                right.append(trajectory.reward['accuracy'])
                if measured:
                    measured(trajectory)
                bar.update(accuracy=sum(right) / len(right), **agent.cost())

            environment, limits = setting.environment(session), setting.limits(config.agent)
            agent.play(left, Conditions(setting.samples, environment, limits, scorer, note))
    gather(session.workdir, path, questions, done)
    every = samples_of(questions, setting.samples)
    return [done[q.source, q.id, m] for q, m in every if (q.source, q.id, m) in done]


def file_name(name: str) -> str:
    """The name of an agent as part of a file's: 'Qwen/Qwen2.5-VL' has a slash."""
    return re.sub(r'[^\w.-]+', '_', name)


def samples_of(questions: Iterable[Question], samples: int) -> list[tuple[Question, int]]:
    """Each question with the numbers of its samples, from 0."""
    return [(question, member) for question in questions for member in range(samples)]


def sample_of(trajectory: Trajectory) -> Sample:
    """The name of a trajectory's sample within a run."""
    return trajectory.question.source, trajectory.question.id, trajectory.member


def gather(
    workdir: Workdir, path: Path, questions: Sequence[Question], done: dict[Sample, Trajectory]
) -> None:
    """Adds the other processes' trajectories to those of the first, and to its file.

    Args:
        workdir: of the run.
        path: this process's file.
        questions: of all processes.
        done: this process's trajectories by their samples; changed in the first one.
    """
    multihost.barrier()
    by_key = {(q.source, q.id): q for q in questions}
    for folder in multihost.folders(workdir.path)[1:] if multihost.is_main() else ():
        # Their pictures lie in folders of their own; one picture has one path here.
        new = {
            sample_of(t): dataclasses.replace(t, question=by_key[t.question.source, t.question.id])
            for t in read_trajectories(folder / path.relative_to(workdir.path))
            if sample_of(t) not in done and (t.question.source, t.question.id) in by_key
        }
        append_trajectories(path, new.values())
        done |= new
