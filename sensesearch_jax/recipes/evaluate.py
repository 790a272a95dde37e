"""Evaluation: policies and served models on held-out questions, as agents with all tools or some, with
the image search's results in the prompt, or in one turn without tools.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.data.questions import questions_of
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.benchmarks import named_by_set
from sensesearch_jax.evaluation.evaluation_page import write_evaluation_page
from sensesearch_jax.evaluation.harness_card import harness_card
from sensesearch_jax.evaluation.modes import RAG
from sensesearch_jax.evaluation.result_files import printed, summarise_sets, tables, write_rows
from sensesearch_jax.evaluation.results import result_row
from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.recipes.evaluated_agents import Agent, PolicyAgent, ServedAgent, paid_requests
from sensesearch_jax.recipes.evaluated_samples import EVALUATION, Setting, evaluate
from sensesearch_jax.recipes.session import (
    LoadedPolicy,
    Session,
    load_policy_directory,
    open_session,
)
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutLimits
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.workdir import Workdir, atomic_write


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
            agent = policy_agent(session, loaded, session.features(loaded))
        else:
            paid = stack.enter_context(paid_requests(config, workdir / 'paid.jsonl'))
            agent = ServedAgent(session, paid)
        found = evaluate(session, agent, questions, EVALUATION, evaluated.name, setting)
        if multihost.is_main():
            write_results(session, agent, found, evaluated.name, setting)


def policy_agent(session: Session, loaded: LoadedPolicy, features: FeatureStore) -> PolicyAgent:
    """A policy that is sampled as the config's `evaluate` says.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
    """
    settings = session.config.evaluate
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    return PolicyAgent(session, loaded, features, sampling, settings.lanes)


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
    images, protocol = session.client.image, session.protocol
    page = workdir / 'viewer.html'
    write_evaluation_page(page, name, found, sets, card, images, protocol, command)
    print(f'\n{printed(name, sets, card)}\n\n{page}: scores and trajectories.')


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
