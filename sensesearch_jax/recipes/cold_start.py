"""Cold start: an expert solves, with real tools, questions that the base policy fails."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ml_collections import ConfigDict

from sensesearch_jax.agent.chat_template import tokenise
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.openai_model import ChatModel, OpenAIAgent, OpenAIModel, ServedModel
from sensesearch_jax.agent.protocol import PROTOCOLS
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.cold_start.expert import Expert
from sensesearch_jax.cold_start.openai_expert import OpenAIExpert
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.cold_start.validation import validate_all
from sensesearch_jax.data.questions import question_set
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    LoadedPolicy,
    Session,
    append_trajectories,
    load_policy_directory,
    open_session,
    read_trajectories,
)
from sensesearch_jax.rewards.scorer import Scorer, uncounted
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutLimits, rollout
from sensesearch_jax.rollout.task_queue import Task
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.seeds import hash_seed
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

PLAIN_SYSTEM = 'You are a helpful assistant.'
EXPERTS = ('scripted', 'openai')
SCRIPTED = 'sensesearch_jax.pocket.expert.scripted'  # by name, since no room imports the demo


class PlainEnvironment(Environment):
    """A plain chat without tools: the reply is the answer."""

    def __init__(self, environment: Environment):
        super().__init__(environment.client, environment.protocol, (), environment.limits)
        self.system_prompt = PLAIN_SYSTEM


class PlainScorer(Scorer):
    """The scorer of a plain chat."""

    def answer(self, trajectory: Trajectory) -> str | None:
        """The whole reply."""
        return (
            None
            if uncounted(trajectory) or not trajectory.turns
            else trajectory.turns[0].text.strip()
        )


def run(config: ConfigDict, workdir: Workdir) -> None:
    """The cold-start stages alone; writes workdir/cold_start/kept.jsonl, which `sft.py` trains on."""
    loaded = load_policy_directory(
        config.policy, config, make_mesh(config.mesh), config.rollout.dtype
    )
    with open_session(config, workdir) as session:
        questions = question_set(workdir, 'train', config.questions.train, config.questions.seed)
        cold_start(session, loaded, session.features(loaded), questions)


def cold_start(
    session: Session, loaded: LoadedPolicy, features: FeatureStore, questions: Sequence[Question]
) -> list[Trajectory]:
    """Mines, synthesises and validates; each stage goes on where it was interrupted.

    Several processes deal out the questions of each stage.

    Args:
        session: of the run.
        loaded: the base policy.
        features: of its vision tower.
        questions: of all processes.

    Returns:
        The kept trajectories: of all processes in the first one, elsewhere this process's.
    """
    mined = mine(session, loaded, features, demonstrable(session, questions))
    chosen = _balanced(mined, session.config.expert.questions)
    made = synthesise_all(session, loaded, multihost.local_items(chosen))
    return validated(session, made, chosen)


def demonstrable(session: Session, questions: Sequence[Question]) -> list[Question]:
    """The questions that the expert can solve with the run's tools; prints why others are left out.

    Raises:
        UserError: there are none.
    """
    expert = make_expert(session.config, session.client, None, 0)
    unmet = {name: expert.unmet(name) for name in sorted({q.category for q in questions})}
    reasons = '; '.join(reason for reason in unmet.values() if reason)
    chosen = [q for q in questions if unmet[q.category] is None]
    if not chosen:
        raise UserError(f'The cold start has nothing to demonstrate: {reasons}.')
    if reasons:
        print(
            f'The cold start leaves out {len(questions) - len(chosen)} of {len(questions)} questions: {reasons}.',
            file=sys.stderr,
        )
    return chosen


def mine(
    session: Session, loaded: LoadedPolicy, features: FeatureStore, questions: Sequence[Question]
) -> list[Question]:
    """The questions that the base policy, asked plainly, gets right at most `mine.most_right` times
    in `mine.samples`.

    Those on which tools or judge failed are left out, and asked again when the run goes on.

    Args:
        session: of the run.
        loaded: the base policy.
        features: of its vision tower.
        questions: of all processes.

    Raises:
        UserError: tools or judge failed on all.
    """
    config, workdir = session.config, session.workdir
    path = workdir / 'cold_start' / 'mined.jsonl'
    right: dict[str, int] = {}
    if path.is_file():
        right = {r['id']: r['right'] for r in map(json.loads, path.read_text().splitlines())}
    own = multihost.local_items(questions)
    left = [q for q in own if q.id not in right]
    if multihost.global_max(len(left)):  # making the engines takes all processes
        path.parent.mkdir(parents=True, exist_ok=True)
        engines = session.engines(
            loaded,
            groups=config.rollout.groups,
            members=config.mine.samples,
            sampling=Sampling(config.mine.temperature),
        )
        limits = RolloutLimits(max_turns=1, turn_tokens=config.mine.answer_tokens)
        environment, scorer = (
            PlainEnvironment(session.environment()),
            PlainScorer(**vars(session.scorer())),
        )

        # By the question, so that those left after an interruption are asked with the seeds that
        # they would have had.
        def seeds(q):
            return tuple(
                hash_seed(config.seed, f'mine-{q.id}-{i}') for i in range(config.mine.samples)
            )

        tasks = [Task(q, seeds(q)) for q in left]
        with Progress('mine', len(own), initial=len(own) - len(left), unit='question') as bar:

            def note(group: list[Trajectory]) -> None:
                if any(t.state in ASKED_AGAIN for t in group):
                    return  # how hard it is is not known
                right[group[0].question.id] = sum(t.reward['accuracy'] == 1 for t in group)
                hard = sum(r <= config.mine.most_right for r in right.values())
                bar.update(hard=hard)

            for first in range(0, len(tasks), 64):
                part = tasks[first : first + 64]
                rollout(
                    part,
                    engines,
                    loaded.chat,
                    environment,
                    features,
                    limits,
                    scorer=scorer,
                    tool_threads=config.rollout.tool_threads,
                    judge_threads=config.rollout.judge_threads,
                    on_group=note,
                )
                lines = (json.dumps({'id': i, 'right': right[i]}) + '\n' for i in right)
                atomic_write(path, ''.join(lines))
    for text in multihost.allgather_texts(json.dumps(right)):
        right |= json.loads(text)
    if questions and not any(q.id in right for q in questions):
        raise UserError(
            f'Tools or judge failed on each of {len(questions)} questions, of which none is mined; mend '
            f'{session.client.url} and start again with the same --workdir.'
        )
    # In the order of the questions, not in that in which groups happened to finish.
    return [
        q for q in questions if right.get(q.id, config.mine.samples + 1) <= config.mine.most_right
    ]


def make_expert(
    config: ConfigDict, client: ToolClient, model: ChatModel | None, seed: int
) -> Expert:
    """The expert that the config names: 'scripted', or any OpenAI-compatible model.

    Args:
        config: with `expert`, and the protocol and tools of `agent`.
        client: where the expert reads images.
        model: that an 'openai' expert asks; None where it is not run.
        seed: of the scripted expert's choices.

    Raises:
        UserError: no such expert.
    """
    expert, protocol, tools = config.expert, PROTOCOLS[config.agent.protocol], config.agent.tools
    if expert.kind == 'scripted':
        return importlib.import_module(SCRIPTED).ScriptedExpert(
            random.Random(seed), protocol, tools
        )
    if expert.kind == 'openai':
        agent = OpenAIAgent(
            model,
            client.image,
            protocol.system_prompt(tools),
            expert.temperature,
            expert.turn_tokens,
        )
        return OpenAIExpert(agent, protocol, tools, expert.tries)
    raise UserError(f"expert.kind '{expert.kind}' is unknown; choose from {list(EXPERTS)}.")


def synthesise_all(
    session: Session, loaded: LoadedPolicy, questions: Sequence[Question]
) -> list[Trajectory]:
    """One expert trajectory per question, with real tool calls, as text and as tokens.

    Those on disk stay, but for those on which tools or expert had failed.

    Args:
        session: of the run.
        loaded: the policy with whose tokenizer they are encoded.
        questions: this process's.
    """
    config = session.config
    path = session.workdir / 'cold_start' / 'expert.jsonl'
    made = {t.question.id: t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    left = [q for q in questions if q.id not in made]
    environment = session.environment()
    model = None
    if config.expert.kind == 'openai':
        model = OpenAIModel(ServedModel.of(config.expert), config.expert.threads)

    def work(question: Question) -> Trajectory:
        seed = hash_seed(config.seed, question.id)
        expert = make_expert(config, session.client, model, seed)
        trajectory = synthesise(question, expert, environment, config.agent.max_turns)
        parts = session.protocol.user_parts(question, trajectory.own_images)
        return tokenise(trajectory, loaded.chat, environment.system_prompt, parts)

    with (
        Progress(
            'synthesise', len(questions), initial=len(questions) - len(left), unit='trajectory'
        ) as bar,
        ThreadPoolExecutor(config.expert.threads) as pool,
    ):
        for trajectory in pool.map(work, left):
            append_trajectories(path, [trajectory])
            made[trajectory.question.id] = trajectory
            bar.update(turns=len(trajectory.turns))
    return [made[q.id] for q in questions]


def validated(
    session: Session, trajectories: Sequence[Trajectory], questions: Sequence[Question]
) -> list[Trajectory]:
    """The trajectories whose format, logic and answer hold, written to kept.jsonl.

    The stage's result counts why others were rejected.

    Args:
        session: of the run.
        trajectories: this process's.
        questions: of all processes, in the order in which the first one keeps the trajectories.

    Returns:
        The kept trajectories: of all processes in the first one, elsewhere this process's.

    Raises:
        UserError: none is kept.
    """
    workdir = session.workdir
    kept, reasons = validate_all(
        trajectories,
        session.scorer(),
        session.config.rollout.suffix_capacity,
        session.config.expert.threads,
    )
    kept_path = workdir / 'cold_start' / 'kept.jsonl'

    def write():
        return atomic_write(kept_path, ''.join(json.dumps(t.to_json()) + '\n' for t in kept))

    write()
    counts = {
        'synthesised': Counter(all=len(trajectories)),
        'kept': Counter(all=len(kept)),
        'rejected': reasons,
        'states': Counter(t.state.value for t in trajectories),
        'ok': Counter(all=sum(t.state is SampleState.OK for t in kept)),
    }
    everywhere = [json.loads(text) for text in multihost.allgather_texts(json.dumps(counts))]
    total = {
        name: sum((Counter(of_one[name]) for of_one in everywhere), Counter()) for name in counts
    }
    multihost.barrier()
    if multihost.is_main():
        for folder in multihost.folders(workdir.path)[1:]:
            kept += read_trajectories(folder / kept_path.relative_to(workdir.path))
        by_id = {t.question.id: t for t in kept}
        kept = [dataclasses.replace(by_id[q.id], question=q) for q in questions if q.id in by_id]
        write()
    workdir.mark_done(
        'cold_start',
        {
            'synthesised': total['synthesised']['all'],
            'kept': total['kept']['all'],
            'rejected': dict(total['rejected']),
            'states': dict(total['states']),
        },
    )
    if not total['ok']:
        raise UserError(
            f'Validation kept none of {total["synthesised"]["all"]} trajectories ({dict(total["rejected"])}); '
            f'look at {workdir / "cold_start" / "expert.jsonl"}.'
        )
    return kept


def _balanced(questions: Sequence[Question], count: int) -> list[Question]:
    """At most `count` questions, the categories in turn, so that a short cold start has them all."""
    categories: dict[str, list[Question]] = {}
    for question in questions:
        categories.setdefault(question.category, []).append(question)
    ranked = sorted(
        ((i / len(group), q) for group in categories.values() for i, q in enumerate(group)),
        key=lambda pair: (pair[0], pair[1].id),
    )
    return [q for _, q in ranked[:count]]
