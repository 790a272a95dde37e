"""Evaluation: policies on held-out questions, as agents with all tools, without some, or in plain
chat.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.questions import question_set
from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    LoadedPolicy,
    Session,
    append_trajectories,
    load_policy_directory,
    open_session,
    read_trajectories,
    rollout_limits,
)
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import rollout
from sensesearch_jax.rollout.task_queue import Task
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.seeds import hash_seed
from sensesearch_jax.runtime.workdir import Workdir, atomic_write


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Evaluates `config.policy` on questions of `config.evaluate.split`; writes trajectories,
    summary.json and a table.
    """
    loaded = load_policy_directory(
        config.policy, config, make_mesh(config.mesh), config.rollout.dtype
    )
    with open_session(config, workdir) as session:
        questions = question_set(
            workdir, config.evaluate.split, config.questions.test, config.questions.test_seed
        )
        found = evaluate(session, loaded, session.features(loaded), questions, config.evaluate.name)
    if multihost.is_main():
        write_summary(workdir, {config.evaluate.name: found})


def evaluate(
    session: Session,
    loaded: LoadedPolicy,
    features: FeatureStore,
    questions: Sequence[Question],
    name: str,
    tools: Sequence[str] | None = None,
) -> list[Trajectory]:
    """One scored trajectory per question, in the order of the questions.

    Goes on where it was interrupted; a question on which tools or judge had failed is asked again
    then. Several processes deal out the questions, each to its own devices and tool server.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
        questions: of all processes.
        name: of the policy, in the summary and as the file workdir/evaluation/<name>.jsonl.
        tools: those switched on; the config's by default.

    Returns:
        The trajectories: of all processes in the first one, elsewhere this process's.
    """
    config = session.config
    path = session.workdir / 'evaluation' / f'{name.replace(" ", "_")}.jsonl'
    done = {t.question.id: t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    own = multihost.local_items(questions)
    left = [q for q in own if q.id not in done]
    if multihost.global_max(len(left)):  # making the engines takes all processes
        width = min(config.evaluate.lanes, max(len(left), 1))
        sampling = Sampling(
            config.evaluate.temperature, config.evaluate.top_k, config.evaluate.top_p
        )
        engines = session.engines(loaded, groups=width, members=1, sampling=sampling)
        with Progress(
            f'evaluate {name}', len(own), initial=len(own) - len(left), unit='question'
        ) as bar:
            right = [t.reward['accuracy'] for t in done.values()]

            def note(group: list[Trajectory]) -> None:
                for t in group:
                    done[t.question.id] = t
                    right.append(t.reward['accuracy'])
                append_trajectories(path, group)
                bar.update(accuracy=sum(right) / len(right))

            rollout(
                [Task(q, (hash_seed(config.seed, f'evaluate-{q.id}'),)) for q in left],
                engines,
                loaded.chat,
                session.environment(tools),
                features,
                rollout_limits(config.agent),
                scorer=session.scorer(),
                tool_threads=config.rollout.tool_threads,
                judge_threads=config.rollout.judge_threads,
                on_group=note,
            )
    gather(session.workdir, path, questions, done)
    return [done[q.id] for q in questions if q.id in done]


def gather(
    workdir: Workdir, path: Path, questions: Sequence[Question], done: dict[str, Trajectory]
) -> None:
    """Adds the other processes' trajectories to those of the first, and to its file.

    Args:
        workdir: of the run.
        path: this process's file.
        questions: of all processes.
        done: this process's trajectories by the ids of their questions; changed in the first one.
    """
    multihost.barrier()
    for folder in multihost.folders(workdir.path)[1:] if multihost.is_main() else ():
        theirs = {
            t.question.id: t for t in read_trajectories(folder / path.relative_to(workdir.path))
        }
        # Their pictures lie in folders of their own; one picture has one path here.
        new = {
            q.id: dataclasses.replace(theirs[q.id], question=q)
            for q in questions
            if q.id in theirs and q.id not in done
        }
        append_trajectories(path, new.values())
        done |= new


def write_summary(workdir: Workdir, runs: Mapping[str, Sequence[Trajectory]]) -> dict:
    """Writes summary.json of the runs, and prints their table."""
    summary = summarise({name: [t.to_json() for t in found] for name, found in runs.items()})
    atomic_write(workdir / 'summary.json', json.dumps(summary, indent=1) + '\n')
    print(format_table(summary))
    return summary
