"""Cold start: an expert solves, with real tools, questions that the base policy fails.

Three stages, each with a file in workdir/cold_start from which it goes on: *mine* (mined.jsonl),
*synthesise* (expert.jsonl, and turns.jsonl of what is under way) and *validate* (verdicts.jsonl). A
trajectory is validated as soon as it is there, so that a run that a budget ends has kept what it paid
for. What is kept is in kept.jsonl, what is not in rejected.jsonl with the reasons as its `failure`.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from sensesearch_jax.agent.chat_template import ChatTokenizer, tokenise
from sensesearch_jax.agent.ledger import BudgetSpent
from sensesearch_jax.agent.openai_model import ChatModel, OpenAIAgent
from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.request_process import PaidRequests
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.cold_start.demonstrations import Demonstrations, Judged
from sensesearch_jax.cold_start.expert import Expert
from sensesearch_jax.cold_start.mining import Note, PlainEnvironment, PlainScorer, ServedAnswers
from sensesearch_jax.cold_start.openai_expert import OpenAIExpert
from sensesearch_jax.cold_start.reference_expert import ReferenceExpert
from sensesearch_jax.cold_start.review import Reviewer
from sensesearch_jax.cold_start.spending import cost, paid_requests
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.cold_start.validation import Verdict, verdict_on
from sensesearch_jax.data.questions import questions_of
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.cold_start_results import gathered
from sensesearch_jax.recipes.item_metrics import item_metrics
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    LoadedPolicy,
    Session,
    load_policy_directory,
    load_tokenizer,
    open_session,
)
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutLimits
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.journal import Journal
from sensesearch_jax.runtime.mesh import make_mesh, replica_count
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.seeds import hash_seed, hash_seeds
from sensesearch_jax.runtime.workdir import Workdir

EXPERTS = ('scripted', 'references', 'openai')
MINERS = ('policy', 'openai')
VALIDATORS = ('rules', 'openai')
MEASURED = 16  # demonstrations of a line of metrics
MINED = 64  # questions of one rollout of mining, for each replica of the policy
SCRIPTED = 'sensesearch_jax.pocket.expert.scripted'  # by name, since no room imports the demo

# Samples answers to questions and notes how many are right.
Answers = Callable[[Sequence[Question], Note], None]


def run(config: ConfigDict, workdir: Workdir) -> None:
    """The cold-start stages alone; writes workdir/cold_start/kept.jsonl, which `sft.py` trains on."""
    loaded = None
    if config.mine.kind == 'policy':
        mesh = make_mesh(config.mesh)
        loaded = load_policy_directory(config.policy, config, mesh, config.rollout.dtype)
    chat = loaded.chat if loaded else load_tokenizer(config.policy, config)
    with open_session(config, workdir) as session:
        questions = questions_of(workdir, config.data, 'train')
        answers = policy_answers(session, loaded, session.features(loaded)) if loaded else None
        cold_start(session, chat, answers, questions)


def cold_start(
    session: Session, chat: ChatTokenizer, answers: Answers | None, questions: Sequence[Question]
) -> list[Trajectory]:
    """Mines, synthesises and validates; each stage goes on where it was interrupted.

    Several processes deal out the questions of each stage, and the budget.

    Args:
        session: of the run.
        chat: the tokenizer of the policy that is to learn.
        answers: of the base policy; not asked where mine.kind is 'openai'.
        questions: of all processes.

    Returns:
        The kept trajectories: of all processes in the first one, elsewhere this process's.

    Raises:
        UserError: the budget is spent (what is kept by then is written), nothing is kept, or an alarm
            of `alarms.stop_on` was raised.
    """
    config, spent = session.config, []
    ledger = session.workdir / 'cold_start' / 'ledger.jsonl'
    processes = len(multihost.folders(session.workdir.path))
    with paid_requests(config, ledger, processes) as paid:
        if config.mine.kind == 'openai':
            answers = served_answers(session, paid.of('mine'))
        mined = mine(session, answers, demonstrable(session, questions), spent, paid)
        chosen = _balanced(mined, config.expert.questions)
        found = demonstrate(session, chat, multihost.local_items(chosen), spent, paid)
        spending = paid.totals if paid else {}
    return gathered(session, found, questions, chosen, spent, spending)


def demonstrable(session: Session, questions: Sequence[Question]) -> list[Question]:
    """The questions that the expert can solve with the run's tools; prints why others are left out.

    Raises:
        UserError: there are none.
    """
    expert = make_expert(session.config, session.client, None, 0)
    unmet = [expert.unmet(question) for question in questions]
    reasons = '; '.join(sorted({reason for reason in unmet if reason}))
    chosen = [question for question, reason in zip(questions, unmet) if reason is None]
    if not chosen:
        raise UserError(f'The cold start has nothing to demonstrate: {reasons}.')
    if reasons:
        print(
            f'The cold start leaves out {len(questions) - len(chosen)} of {len(questions)} questions: {reasons}.',
            file=sys.stderr,
        )
    return chosen


def policy_answers(session: Session, loaded: LoadedPolicy, features: FeatureStore) -> Answers:
    """Plain answers of a policy.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
    """
    config = session.config
    samples, at_once = config.mine.samples, MINED * replica_count(session.mesh)

    def answers(questions: Sequence[Question], note: Note) -> None:
        engines = session.engines(
            loaded,
            asked=at_once,
            groups=config.rollout.groups,
            members=samples,
            sampling=Sampling(config.mine.temperature),
        )
        limits = RolloutLimits(max_turns=1, turn_tokens=config.mine.answer_tokens)
        environment = PlainEnvironment(session.environment())
        scorer = PlainScorer(**vars(session.scorer()))

        def noted(group: list[Trajectory]) -> None:
            if not any(t.state in ASKED_AGAIN for t in group):  # else how hard it is is not known
                right = sum(t.reward['accuracy'] == 1 for t in group)
                note(group[0].question, right, [scorer.answer(t) or '' for t in group])

        # Seeds are by the question, so that those left after an interruption are asked with the ones
        # that they would have had.
        tasks = [Task(q, hash_seeds(config.seed, f'mine-{q.id}', samples)) for q in questions]
        for first in range(0, len(tasks), at_once):
            stream = session.stream(
                engines, loaded, features, environment=environment, limits=limits
            )
            stream.sample(tasks[first : first + at_once], scorer, noted)

    return answers


def served_answers(session: Session, model: ChatModel) -> Answers:
    """Plain answers of a served model."""
    mine = session.config.mine
    settings = mine.samples, mine.temperature, mine.answer_tokens, mine.threads
    return ServedAnswers(model, session.environment(), session.scorer(), *settings)


def mine(
    session: Session,
    answers: Answers,
    questions: Sequence[Question],
    spent: list[str],
    paid: PaidRequests | None,
) -> list[Question]:
    """The questions that plain answers get right at most `mine.most_right` times in `mine.samples`.

    Those on which tools, judge or service failed are left out, and asked again when the run goes on.

    Args:
        session: of the run.
        answers: that are sampled.
        questions: of all processes.
        spent: gets the sentence of a budget that ended the stage.
        paid: for the cost so far.

    Raises:
        UserError: tools or judge failed on all.
    """
    config, workdir = session.config, session.workdir
    own = multihost.local_items(questions)
    with Journal(workdir / 'cold_start' / 'mined.jsonl') as journal:
        right = {line['id']: line['right'] for line in journal}
        left = [q for q in own if q.id not in right]
        if multihost.global_max(len(left)):  # making a policy's engines takes all processes
            hard = sum(right[q.id] <= config.mine.most_right for q in own if q.id in right)
            done = len(own) - len(left)
            with Progress('mine', len(own), initial=done, unit='question') as bar:

                def note(question: Question, count: int, texts: list[str]) -> None:
                    nonlocal hard
                    right[question.id] = count
                    journal.append(
                        {'id': question.id, 'right': count, 'answers': texts}, sync=False
                    )
                    hard += count <= config.mine.most_right
                    bar.update(hard=hard, **cost(config, paid))

                try:
                    answers(left, note)
                except BudgetSpent as error:
                    spent.append(str(error))
    for text in multihost.allgather_texts(json.dumps(right)):
        right |= json.loads(text)
    if questions and not spent and not any(q.id in right for q in questions):
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
    """The expert that the config names: the pocket world's, the references themselves, or any
    OpenAI-compatible model.

    Args:
        config: with `expert`, and the protocol and tools of `agent`.
        client: where the expert reads images.
        model: that an 'openai' expert asks; None where it is not run.
        seed: of the scripted expert's choices.

    Raises:
        UserError: no such expert.
    """
    expert, protocol, tools = config.expert, protocol_of(config.agent), config.agent.tools
    if expert.kind == 'scripted':
        return importlib.import_module(SCRIPTED).ScriptedExpert(
            random.Random(seed), protocol, tools
        )
    if expert.kind == 'references':
        return ReferenceExpert()
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


def make_reviewer(session: Session, model: ChatModel) -> Reviewer:
    """The served model that validates."""
    validate = session.config.validate
    return Reviewer(
        model, session.client.image, session.protocol, validate.tries, validate.reply_tokens
    )


def demonstrate(
    session: Session,
    chat: ChatTokenizer,
    questions: Sequence[Question],
    spent: list[str],
    paid: PaidRequests | None,
) -> dict[str, Judged]:
    """One expert trajectory per question, with real tool calls, as text and as tokens, and the
    verdict on it.

    Those on disk stay, but for those on which tools, judge or service had failed.

    Args:
        session: of the run.
        chat: the tokenizer of the policy that is to learn.
        questions: this process's.
        spent: gets the sentence of a budget that ended the stage.
        paid: that served models are asked through; None if there are none.

    Returns:
        By the questions' ids.
    """
    config = session.config
    model = paid.of('expert') if config.expert.kind == 'openai' else None
    reviewer = None
    if config.validate.kind == 'openai':
        reviewer = make_reviewer(session, paid.of('validate'))
    environment, scorer = session.environment(), session.scorer()

    def make(question: Question, begun: Sequence[Turn], note: Callable[[Turn], None]) -> Trajectory:
        # A scripted expert begins anew: its choices are drawn from a stream.
        done = begun if model else ()
        expert = make_expert(config, session.client, model, hash_seed(config.seed, question.id))
        trajectory = synthesise(
            question, expert, environment, config.agent.max_turns, done=done, note=note
        )
        parts = session.protocol.user_parts(question, trajectory.own_images)
        return tokenise(trajectory, chat, environment.system_prompt, parts)

    def judge(trajectory: Trajectory) -> Verdict:
        return verdict_on(trajectory, scorer, config.rollout.suffix_capacity, reviewer)

    with Demonstrations(session.workdir / 'cold_start') as found:
        own = [found.done[q.id] for q in questions if q.id in found.done]
        kept = sum(not judged.verdict.reasons for judged in own)
        with (
            Progress('demonstrate', len(questions), initial=len(own), unit='question') as bar,
            item_metrics(session, bar, len(own), MEASURED, of_demonstrations) as measured,
        ):
            try:
                for judged in found.rest(questions, make, judge, config.expert.threads):
                    kept += not judged.verdict.reasons
                    measured(judged)
                    bar.update(kept=kept, **cost(config, paid))
            except BudgetSpent as error:
                spent.append(str(error))
        return found.done


def of_demonstrations(newest: Sequence[Judged]) -> dict[str, float]:
    """Metrics of demonstrations: shares that are kept and that tools or judge failed on, and turns and
    calls of each.
    """
    calls = Counter(tool_of(turn.action) for j in newest for turn in j.trajectory.turns)
    counts = {
        'kept': sum(not j.verdict.reasons for j in newest),
        'turns': sum(len(j.trajectory.turns) for j in newest),
        **{
            state.value: sum(state.value in j.verdict.reasons for j in newest)
            for state in (SampleState.INFRA_FAILED, SampleState.UNSCORABLE)
        },
        **{f'tool_calls/{tool}': calls[tool] for tool in TOOLS},
    }
    return {name: count / len(newest) for name, count in counts.items()}


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
