"""Evaluation: policies and served models on held-out questions, as agents with all tools or some, with
the image search's results in the prompt, or in one turn without tools.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.questions import questions_of
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.benchmarks import named_by_set
from sensesearch_jax.evaluation.evaluation_page import write_evaluation_page
from sensesearch_jax.evaluation.harness_card import harness_card
from sensesearch_jax.evaluation.modes import AGENT, RAG, mode_environment, mode_scorer
from sensesearch_jax.evaluation.result_files import printed, summarise_sets, tables, write_rows
from sensesearch_jax.evaluation.results import result_row
from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.recipes.evaluated_agents import (
    Agent,
    Conditions,
    PolicyAgent,
    ServedAgent,
    paid_requests,
)
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    Session,
    append_trajectories,
    load_policy_directory,
    open_session,
    read_trajectories,
    rollout_limits,
)
from sensesearch_jax.rollout.scheduler import RolloutLimits
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

Sample = tuple[str, str, int]  # set, id of the question, number of the sample


@dataclass(frozen=True)
class Setting:
    """How the questions of a run are asked.

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


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Evaluates a policy or a served model; writes trajectories, results.jsonl, summary.json,
    card.json, table.md and viewer.html.

    Raises:
        UserError: mode 'rag', and the tool server has no image search.
    """
    evaluated = config.evaluate
    setting = Setting(evaluated.mode, evaluated.samples, tuple(config.agent.tools))
    loaded = None
    if evaluated.agent.kind == 'policy':
        mesh = make_mesh(config.mesh)
        loaded = load_policy_directory(config.policy, config, mesh, config.rollout.dtype)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(config, workdir))
        if setting.mode == RAG:
            check_image_search(session)
        questions = questions_of(workdir, config.data, 'eval')
        if loaded:
            agent = PolicyAgent(session, loaded, session.features(loaded))
        else:
            paid = stack.enter_context(paid_requests(config, workdir / 'paid.jsonl'))
            agent = ServedAgent(session, paid)
        found = evaluate(session, agent, questions, evaluated.name, setting)
        if multihost.is_main():
            write_results(session, agent, found, evaluated.name, setting)


def check_image_search(session: Session) -> None:
    """Whether the tool server can search by image.

    Raises:
        UserError: it cannot.
    """
    health = session.client.health()
    if not isinstance(health, ToolFailure) and health['backends'].get('image_search') == 'none':
        raise UserError(
            "evaluate.mode 'rag' puts image search's results into the prompt, but tools.config "
            f'{session.config.tools.config} has no image_search; add one, or choose another mode.'
        )


def evaluate(
    session: Session, agent: Agent, questions: Sequence[Question], name: str, setting: Setting
) -> list[Trajectory]:
    """Scored trajectories: all samples of the first question, of the second, and so on.

    Goes on where it was interrupted, by sample; one on which tools or judge had failed is asked
    again then. Several processes deal out the questions, each to its own devices and tool server.

    Args:
        session: of the run.
        agent: that answers.
        questions: of all processes.
        name: of the agent, in the summary and as the file workdir/evaluation/<name>.jsonl.
        setting: how they are asked.

    Returns:
        The trajectories: of all processes in the first one, elsewhere this process's.
    """
    config = session.config
    path = session.workdir / 'evaluation' / f'{file_name(name)}.jsonl'
    done = {sample_of(t): t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    own = samples_of(multihost.local_items(questions), setting.samples)
    left = [(q, member) for q, member in own if (q.source, q.id, member) not in done]
    if multihost.global_max(len(left)):  # making the engines takes all processes
        scorer = mode_scorer(setting.mode, session.scorer())
        unit = 'sample' if setting.samples > 1 else 'question'
        with Progress(f'evaluate {name}', len(own), initial=len(own) - len(left), unit=unit) as bar:
            right = [t.reward['accuracy'] for t in done.values()]

            def note(trajectory: Trajectory) -> None:
                if trajectory.answer is None:  # in one turn, a reply without tags is the answer
                    trajectory.answer = scorer.answer(trajectory)
                append_trajectories(path, [trajectory])
                done[sample_of(trajectory)] = trajectory
                right.append(trajectory.reward['accuracy'])
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


def write_results(
    session: Session, agent: Agent, found: Sequence[Trajectory], name: str, setting: Setting
) -> None:
    """Writes results.jsonl, summary.json, card.json, table.md and viewer.html, and prints the scores
    with their harness card.

    Args:
        session: of the run.
        agent: that answered.
        found: the scored trajectories.
        name: of the agent.
        setting: how the questions were asked.
    """
    config, workdir = session.config, session.workdir
    limits, environment = setting.limits(config.agent), setting.environment(session)
    rows = [result_row(t, limits.max_turns, limits.max_malformed) for t in found]
    write_rows(workdir.path, rows)
    sets = summarise_sets(rows)
    health = session.client.health()
    card = harness_card(
        agent=agent.described(),
        mode=setting.mode,
        environment={
            'protocol': environment.protocol.name,
            'tools': list(environment.tools),
            'system_prompt': environment.system_prompt,
            'shown': dataclasses.asdict(environment.limits),
        },
        budgets=budgets(config, limits),
        sampling={
            'samples': setting.samples,
            'temperature': config.evaluate.temperature,
            'top_k': config.evaluate.top_k,
            'top_p': config.evaluate.top_p,
            'seed': config.seed,
        },
        health=None if isinstance(health, ToolFailure) else health,
        sets=sets,
    )
    atomic_write(workdir / 'card.json', json.dumps(card, indent=1) + '\n')
    as_json = [t.to_json() for t in named_by_set(found)]
    summary = summarise({name: as_json}) | {'sets': sets, 'card': card}
    atomic_write(workdir / 'summary.json', json.dumps(summary, indent=1) + '\n')
    atomic_write(workdir / 'table.md', tables(name, sets, card))
    command = f'python -m sensesearch_jax.main {" ".join(sys.argv[1:])}'
    write_evaluation_page(
        workdir / 'viewer.html',
        name,
        found,
        sets,
        card,
        session.client.image,
        session.protocol,
        command,
    )
    print(f'\n{printed(name, sets, card)}\n\n{workdir / "viewer.html"}: scores and trajectories.')


def budgets(config: ConfigDict, limits: RolloutLimits) -> dict[str, int]:
    """Turns, tokens and pixels of a trajectory; a served model's server has its own for images and
    prompts.
    """
    found = {'max_turns': limits.max_turns, 'turn_tokens': limits.turn_tokens}
    if config.evaluate.agent.kind == 'policy':
        found |= {name: config.rollout[name] for name in ('prompt_capacity', 'suffix_capacity')}
        found |= {name: config[name] for name in ('min_pixels', 'max_pixels') if config[name]}
    return found


def write_summary(workdir: Workdir, runs: Mapping[str, Sequence[Trajectory]]) -> dict:
    """Writes summary.json of the runs, and prints their table."""
    summary = summarise({name: [t.to_json() for t in found] for name, found in runs.items()})
    atomic_write(workdir / 'summary.json', json.dumps(summary, indent=1) + '\n')
    print(format_table(summary))
    return summary
