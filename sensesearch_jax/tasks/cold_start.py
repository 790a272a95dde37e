"""Cold start: mine questions that the base policy fails, let an expert solve them with real tools, keep what is sound."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ml_collections import ConfigDict

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.protocol import user_text
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.data.cold_start.expert import Expert, ScriptedExpert
from sensesearch_jax.data.cold_start.openai_expert import OpenAIExpert
from sensesearch_jax.data.cold_start.synthesise import synthesise
from sensesearch_jax.data.cold_start.validate import validate_all
from sensesearch_jax.errors import UserError
from sensesearch_jax.inputs.template import tokenise
from sensesearch_jax.rewards.reward import answer_is_right
from sensesearch_jax.rollout.features import FeatureStore
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutLimits, Task, rollout
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir, atomic_write
from sensesearch_jax.tasks.questions import question_set
from sensesearch_jax.tasks.session import (ASKED_AGAIN, Session, Student, append_trajectories, load_student, open_session,
                                           read_trajectories)

PLAIN_SYSTEM = 'You are a helpful assistant.'
EXPERTS = ('scripted', 'openai')


class PlainEnvironment(Environment):
    """A plain chat without tools or protocol: what the policy says is its answer."""

    def __init__(self, client):
        super().__init__(client, tools=())
        self.system_prompt = PLAIN_SYSTEM


def run(config: ConfigDict, workdir: Workdir) -> None:
    """The cold-start stages alone; writes workdir/cold_start/kept.jsonl, which `sft.py` trains on."""
    student = load_student(config.policy)
    with open_session(config, workdir) as session:
        questions = question_set(workdir, 'train', config.questions.train, config.seed)
        cold_start(session, student, session.features(student), questions)


def cold_start(session: Session, student: Student, features: FeatureStore,
               questions: Sequence[Question]) -> list[Trajectory]:
    """Mine, synthesise, validate; each stage goes on where it was interrupted. Returns the kept trajectories."""
    mined = mine(session, student, features, questions)
    made = synthesise_all(session, student, mined)
    return validated(session, made)


def mine(session: Session, student: Student, features: FeatureStore, questions: Sequence[Question]) -> list[Question]:
    """The questions that the base policy, asked plainly, gets right at most `mine.most_right` times in `mine.samples`."""
    config, workdir = session.config, session.workdir
    path = workdir / 'cold_start' / 'mined.jsonl'
    right: dict[str, int] = {}
    if path.is_file():
        right = {r['id']: r['right'] for r in map(json.loads, path.read_text().splitlines())}
    left = [q for q in questions if q.id not in right]
    if left:
        path.parent.mkdir(parents=True, exist_ok=True)
        engines = session.engines(student, groups=config.rollout.groups, members=config.mine.samples,
                                  sampling=Sampling(config.mine.temperature))
        limits = RolloutLimits(max_turns=1, turn_tokens=config.mine.answer_tokens)
        environment = PlainEnvironment(session.client)
        rng = random.Random(f'mine-{config.seed}')
        tasks = [Task(q, tuple(rng.getrandbits(32) for _ in range(config.mine.samples))) for q in left]
        with Progress('mine', len(questions), initial=len(right), unit='question') as bar:

            def note(group: list[Trajectory]) -> None:
                question = group[0].question
                right[question.id] = sum(plainly_right(t) for t in group)
                hard = sum(r <= config.mine.most_right for r in right.values())
                bar.update(hard=hard)

            for first in range(0, len(tasks), 64):
                part = tasks[first:first + 64]
                rollout(part, engines, student.chat, environment, features, limits, on_group=note)
                lines = (json.dumps({'id': i, 'right': right[i]}) + '\n' for i in right)
                atomic_write(path, ''.join(lines))
    # In the order of the questions, not in that in which groups happened to finish.
    return [q for q in questions if right[q.id] <= config.mine.most_right]


def plainly_right(trajectory: Trajectory) -> bool:
    """Whether the whole reply is a right answer."""
    reply = trajectory.turns[0].text if trajectory.turns else ''
    return answer_is_right(trajectory.question, reply.strip()) is True


def make_expert(session: Session, seed: int) -> Expert:
    """The config's expert: 'scripted', or any OpenAI-compatible model."""
    expert = session.config.expert
    if expert.kind == 'scripted':
        return ScriptedExpert(random.Random(seed))
    if expert.kind == 'openai':
        return OpenAIExpert(expert.url, expert.model, session.client, key_env=expert.key_env)
    raise UserError(f"expert.kind '{expert.kind}' is unknown; choose from {list(EXPERTS)}.")


def synthesise_all(session: Session, student: Student, questions: Sequence[Question]) -> list[Trajectory]:
    """One expert trajectory per question, with real tool calls, tokenised for the student.

    Those on disk stay, but for what the tools had failed on.
    """
    config = session.config
    path = session.workdir / 'cold_start' / 'expert.jsonl'
    made = {t.question.id: t for t in read_trajectories(path) if t.state not in ASKED_AGAIN}
    questions = _spread(questions, config.expert.questions)
    left = [q for q in questions if q.id not in made]
    environment = session.environment()

    def work(question: Question) -> Trajectory:
        expert = make_expert(session, hash_seed(config.seed, question.id))
        trajectory = synthesise(question, expert, environment, config.agent.max_turns)
        parts = [*trajectory.images[:1], user_text(question)]
        return tokenise(trajectory, student.chat, environment.system_prompt, parts)

    with (Progress('synthesise', len(questions), initial=len(questions) - len(left), unit='trajectory') as bar,
          ThreadPoolExecutor(config.expert.threads) as pool):
        for trajectory in pool.map(work, left):
            append_trajectories(path, [trajectory])
            made[trajectory.question.id] = trajectory
            bar.update(turns=len(trajectory.turns))
    return [made[q.id] for q in questions]


def validated(session: Session, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Trajectories whose format, logic and answer hold; why others were rejected is counted in the stage's result."""
    workdir = session.workdir
    environment = session.environment()
    kept, reasons = validate_all(trajectories, protocol=environment.protocol,
                                 room=session.config.rollout.suffix_capacity)
    kept_path = workdir / 'cold_start' / 'kept.jsonl'
    atomic_write(kept_path, ''.join(json.dumps(t.to_json()) + '\n' for t in kept))
    workdir.mark_done('cold_start', {'synthesised': len(trajectories), 'kept': len(kept), 'rejected': dict(reasons),
                                     'states': dict(Counter(t.state.value for t in trajectories))})
    if not any(t.state is SampleState.OK for t in kept):
        raise UserError(f'Validation kept none of {len(trajectories)} trajectories ({dict(reasons)}); '
                         f'look at {workdir / "cold_start" / "expert.jsonl"}.')
    return kept


def hash_seed(seed: int, name: str) -> int:
    """A seed of 32 bits for something named, the same in every process."""
    return random.Random(f'{seed}-{name}').getrandbits(32)


def _spread(questions: Sequence[Question], count: int) -> list[Question]:
    """At most `count` questions, the kinds in turn, so that a short cold start still shows all of them."""
    kinds: dict[str, list[Question]] = {}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    ranked = sorted(((i / len(group), q) for group in kinds.values() for i, q in enumerate(group)),
                    key=lambda pair: (pair[0], pair[1].id))
    return [q for _, q in ranked[:count]]
