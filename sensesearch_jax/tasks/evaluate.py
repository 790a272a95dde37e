"""Evaluation: policies on held-out questions, as agents with all tools, without some, or in plain chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.rollout.features import FeatureStore
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import Task, rollout
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir, atomic_write
from sensesearch_jax.tasks.cold_start import hash_seed
from sensesearch_jax.tasks.questions import question_set
from sensesearch_jax.tasks.session import (ASKED_AGAIN, Session, Student, append_trajectories, load_student, open_session,
                                           read_trajectories, rollout_limits)


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Evaluates `config.policy` on questions of `config.evaluate.split`; writes trajectories, summary.json and a table."""
    student = load_student(config.policy, config)
    with open_session(config, workdir) as session:
        questions = question_set(workdir, config.evaluate.split, config.questions.test, config.questions.test_seed)
        found = evaluate(session, student, session.features(student), questions, config.evaluate.name)
    write_summary(workdir, {config.evaluate.name: found})


def evaluate(session: Session, student: Student, features: FeatureStore, questions: Sequence[Question], name: str,
             tools: Sequence[str] | None = None) -> list[Trajectory]:
    """One scored trajectory per question, in the order of the questions; goes on where it was interrupted.

    What tools or judge had failed on is asked again then.

    Args:
        name: of the run, in the summary and as the file workdir/evaluation/<name>.jsonl.
        tools: those switched on; the config's by default.
    """
    config = session.config
    path = session.workdir / 'evaluation' / f'{name.replace(" ", "_")}.jsonl'
    done = {t.question.id: t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    left = [q for q in questions if q.id not in done]
    if left:
        width = min(config.evaluate.lanes, len(left))
        sampling = Sampling(config.evaluate.temperature, config.evaluate.top_k, config.evaluate.top_p)
        engines = session.engines(student, groups=width, members=1, sampling=sampling)
        with Progress(f'evaluate {name}', len(questions), initial=len(done), unit='question') as bar:
            right = [t.reward['accuracy'] for t in done.values()]

            def note(group: list[Trajectory]) -> None:
                for t in group:
                    done[t.question.id] = t
                    right.append(t.reward['accuracy'])
                append_trajectories(path, group)
                bar.update(accuracy=sum(right) / len(right))

            rollout([Task(q, (hash_seed(config.seed, f'evaluate-{q.id}'),)) for q in left], engines, student.chat,
                    session.environment(tools), features, rollout_limits(config.agent),
                    scorer=session.scorer(), tool_threads=config.rollout.tool_threads,
                    judge_threads=config.rollout.judge_threads, on_group=note)
    return [done[q.id] for q in questions]


def write_summary(workdir: Workdir, runs: Mapping[str, Sequence[Trajectory]]) -> dict:
    """summary.json of the runs, and their table on the terminal."""
    summary = summarise({name: [t.to_json() for t in found] for name, found in runs.items()})
    atomic_write(workdir / 'summary.json', json.dumps(summary, indent=1) + '\n')
    print(format_table(summary))
    return summary
