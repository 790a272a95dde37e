"""RL: BN-GSPO (or GSPO, GRPO) on groups of trajectories sampled with real tools."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from sensesearch_jax.agent.client import ToolFailure
from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.errors import UserError, field
from sensesearch_jax.inputs.groups import GroupBatch
from sensesearch_jax.inputs.trajectories import length, own_tokens
from sensesearch_jax.learning.advantages import batch_gain, batch_normalize, group_advantages, spread_share
from sensesearch_jax.learning.losses import check_options
from sensesearch_jax.learning.optimizer import make_optimizer
from sensesearch_jax.learning.steps import InLoss, Learner, Objective, PolicyTargets, trained_part
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.features import FeatureStore
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutStatistics, Task, rollout
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.checkpoints import Checkpoints
from sensesearch_jax.runtime.mesh import make_mesh, replica
from sensesearch_jax.runtime.metrics import memory_use
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.tasks.cold_start import hash_seed
from sensesearch_jax.tasks.questions import question_set
from sensesearch_jax.tasks.session import (ASKED_AGAIN, Session, Student, append_trajectories, load_student, open_session,
                                           read_trajectories, rollout_limits, save_student)
from sensesearch_jax.tasks.sft import keep, not_finite, resume, row_batch, suppressed_mask, training_state

# name -> (ratio, batch layer on): the three algorithms that one config field chooses from.
ALGORITHMS = {'bn_gspo': ('sequence', True), 'gspo': ('sequence', False), 'grpo': ('token', False)}
LEARNED_FROM = (SampleState.OK, SampleState.TRUNCATED)


def run(config: ConfigDict, workdir: Workdir) -> None:
    """RL alone, from the policy directory `config.policy`; writes workdir/rl/policy."""
    student = load_student(config.policy, config, make_mesh(config.mesh), 'float32')  # what is trained is float32
    with open_session(config, workdir) as session:
        rl(session, student, session.features(student), rl_questions(config, workdir))


def rl_questions(config: ConfigDict, workdir: Workdir) -> list[Question]:
    """Those RL learns from, about entities that nothing before it has learned from."""
    return question_set(workdir, 'validation', config.questions.rl, config.questions.seed)


def rl_engines(session: Session, student: Student, learner: Learner) -> list[Engine]:
    """Samplers for a step, with what is learned so far: as many groups at once as there is room for; the others wait."""
    config = session.config.rl
    asked = multihost.share_of(config.questions_per_step, 'rl.questions_per_step')
    return session.engines(student, groups=min(asked, session.config.rollout.groups), members=config.members,
                           sampling=Sampling(config.temperature), parameters=learner.all_parameters)


def question_order(config: ConfigDict, questions: Sequence[Question]) -> Callable[[int], list[Question]]:
    """What each step asks: all questions in the order of `questions.seed`, again and again, each time in another.

    No step asks a question twice, unless it asks more than there are: where a step ends one pass over the questions and
    begins the next, those that it has asked come later in the new pass.
    """
    count, size = len(questions), config.rl.questions_per_step
    shuffled = grain.MapDataset.source(list(range(count))).seed(config.questions.seed).shuffle().repeat()
    order: list[int] = []

    def asked(step: int) -> list[Question]:
        while len(order) < (step + 1) * size:
            of_pass = [shuffled[len(order) + i] for i in range(count)]
            in_step = len(order) % size
            before = Counter(order[len(order) - in_step:])
            first = sorted(of_pass, key=before.__getitem__)[:size - in_step]
            order.extend(first + [i for i in of_pass if i not in first])
        return [questions[i] for i in order[step * size:(step + 1) * size]]

    return asked


def rl(session: Session, student: Student, features: FeatureStore, questions: Sequence[Question]) -> Path:
    """Trains for `rl.steps` rollout batches and writes a policy directory.

    Step s asks the same questions with the same seeds whenever it runs, and finished groups of an unfinished step are
    kept on disk, so that a killed run goes on as if nothing had happened. In a program of several processes each
    samples its share of the questions and gives them to training as its rows; metrics are the processes' means.
    """
    config, workdir = session.config.rl, session.workdir
    shared = multihost.shared_folder(workdir.path) / 'rl'
    folder = shared / 'policy'
    if multihost.agreed(workdir.stage_done('rl') and workdir.stage_result('rl')['steps'] >= config.steps):
        return folder
    objective = make_objective(config)
    updates = config.steps * config.epochs * config.minibatches
    learner = Learner(student.policy, make_optimizer(config, updates), suppressed=suppressed_mask(student),
                      temperature=config.temperature, objective=objective, remat=config.remat,
                      mesh=session.mesh, dtype=config.dtype, threads=config.threads, averaged=config.averaged,
                      trained=trained_part(config))
    reference = nnx.state(student.policy, trained_part(config)) if config.kl_coefficient else None
    engines, asked_at = rl_engines(session, student, learner), question_order(session.config, questions)
    if session.config.rollout.warm_up:
        engines[0].warm_up()
        features.warm_up()
    with Checkpoints(shared / 'checkpoints', keep=1) as checkpoints:
        start = made = resume(learner, checkpoints)
        if start > config.steps:
            raise UserError(f'rl.steps is {config.steps}, but {start} are made in {workdir.path}; give as many or more.')
        failed = 0  # steps in a row without any trajectory to learn from
        session.metrics.resume('rl', start)
        with Progress('rl', config.steps, initial=start) as bar:
            for step in range(start, config.steps):
                parameters = replica(learner.all_parameters, session.mesh)
                for engine in engines:
                    engine.set_parameters(parameters)
                asked = multihost.share(asked_at(step), config.questions_per_step, 'rl.questions_per_step')
                updates = learner.updates
                values = multihost.mean(rl_step(session, student, features, engines, learner, reference, asked, step))
                failed = 0 if values['usable_share'] else failed + 1
                if learner.updates > updates:
                    made = step + 1
                    if config.averaged and (later := made - config.steps // 3) > 0:
                        learner.average(1 / later)
                session.metrics.write('rl', step + 1, values)
                bar.update(reward=values['reward'], accuracy=values['accuracy'], format=values['format'])
                if learner.skipped_in_a_row >= config.max_skipped_updates:
                    raise not_finite(learner, checkpoints, 'rl', made)
                # The last step is as good as any other, and the tools may be back when it is asked again.
                if failed >= config.max_failed_steps or (failed and step + 1 == config.steps):
                    keep(learner, checkpoints, made)
                    raise tools_down(session, step, failed)
                # A step that taught nothing is made again when the run goes on.
                # The last one too, from which a run that is given more steps goes on.
                if ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps) and made == step + 1:
                    checkpoints.save(made, training_state(learner))
    save_student(learner.policy, student, folder, config.dtype)
    workdir.mark_done('rl', {'steps': config.steps})
    return folder


def make_objective(config: ConfigDict) -> Objective:
    """The loss that the config's `rl` names.

    Raises:
        UserError: an unknown algorithm, a batch scope that is none, or a clip out of range.
    """
    if config.algorithm not in ALGORITHMS:
        raise UserError(f"rl.algorithm '{config.algorithm}' is unknown; choose from {list(ALGORITHMS)}.")
    if config.batch_scope not in ('batch', 'minibatch'):
        raise UserError(f"rl.batch_scope '{config.batch_scope}' is unknown; choose 'batch' or 'minibatch'.")
    ratio, _ = ALGORITHMS[config.algorithm]
    objective = Objective(ratio=ratio, clip_low=config.clip_low, clip_high=config.clip_high,
                          dual_clip=config.dual_clip or None if ratio == 'token' else None,
                          kl_coefficient=config.kl_coefficient)
    with field('rl'):
        check_options(**objective.clips, aggregation=None)
    return objective


def rl_step(session: Session, student: Student, features: FeatureStore, engines: Sequence[Engine], learner: Learner,
            reference: nnx.State | None, asked: Sequence[Question], step: int) -> dict[str, float]:
    """One rollout batch and the updates on it. Returns the step's metrics."""
    config, began = session.config.rl, time.monotonic()
    tokens_run = lambda: sum(engine.tokens_run for engine in engines)
    run_before = tokens_run()
    groups, cost = sample_groups(session, student, features, engines, asked, step)
    for engine in engines:
        engine.release()  # the updates want the memory
    sampled = time.monotonic()
    usable = np.array([[is_usable(t) for t in g] for g in groups])
    advantages, values = shaped_advantages(config, groups, usable)
    to_batch = lambda part: multihost.together(row_batch(student, features, part, config.members, own_rows(config),
                                                         pack_step=config.pack_step))
    updates, passes = update(config, learner, reference, groups, advantages, usable, to_batch,
                             np.random.default_rng([session.config.seed, step]))
    run = tokens_run() - run_before
    ended = time.monotonic()
    return behaviour(groups) | values | updates | memory_use() | {
        'token_amplification': (run + passes.run) / max(sum(map(distinct_tokens, groups)) + passes.distinct, 1),
        'pictures_encoded_again': features.encoded_again,  # of the step, for want of rollout.feature_cache_gib
        'feature_cache_wanted_gib': features.step_bytes / (1 << 30),
        'vision_amplification': features.images_encoded / max(features.distinct_images, 1),
        'padding_share': 1 - passes.run / max(passes.padded, 1),
        'usable_share': float(usable.mean()),
        'trained_share': passes.groups / max(config.epochs * len(groups), 1),
        'tool_wait_share': cost.waiting_for_tools / max(cost.seconds, 1e-9),
        'judge_wait_share': cost.waiting_for_judge / max(cost.seconds, 1e-9),
        'rollouts_per_s': usable.size / max(sampled - began, 1e-9),
        'sampled_tokens_per_s': cost.sampled_tokens / max(cost.seconds, 1e-9),
        'turn_s_p50': float(np.percentile(cost.turn_seconds or [0], 50)),
        'turn_s_p95': float(np.percentile(cost.turn_seconds or [0], 95)),
        'compilations': engines[0].compiles + features.compiles,
        'rollout_s': sampled - began, 'step_s': ended - began,
    }


def is_usable(trajectory: Trajectory) -> bool:
    """Whether a trajectory counts in the statistics and in the loss."""
    return trajectory.state in LEARNED_FROM and math.isfinite(trajectory.reward['total'])


def tools_down(session: Session, step: int, steps: int) -> UserError:
    """The end of a run whose tools failed every trajectory of so many steps, with what failed in the last of them."""
    failures = Counter(map(failure, read_trajectories(trajectories_path(session, step))))
    said = ', '.join(f'{what} ({count} times)' for what, count in failures.most_common() if what)
    health = session.client.health()
    answers = (f'does not answer: {health.message}' if isinstance(health, ToolFailure) else
               f"answers, with the back ends {', '.join(f'{tool}: {name}' for tool, name in health['backends'].items())}")
    return UserError(f'No trajectory of the last {steps} steps could be used, since these failed: {said or "other hosts"}; '
                     f'the tool server at {session.client.url} {answers}. Mend that and start again with the same '
                     '--workdir, which asks those questions again (rl.max_failed_steps).')


def failure(trajectory: Trajectory) -> str:
    """The tool that failed a trajectory, or what else leaves it out; '' if nothing does."""
    if trajectory.state is SampleState.UNSCORABLE:
        return 'judge'
    if trajectory.state is SampleState.TOO_LONG:
        return 'room for the prompt or a response (rollout.prompt_capacity, rollout.suffix_capacity)'
    if trajectory.state is not SampleState.INFRA_FAILED:
        return '' if math.isfinite(trajectory.reward['total']) else 'a reward that is not finite'
    last = trajectory.turns[-1] if trajectory.turns else None
    return 'upload of the picture' if last is None else f'{tool_of(last.action)}: {last.observation.parts[0]}'


def own_rows(config: ConfigDict) -> int:
    """Rows that this process gives to a micro-batch."""
    return multihost.share_of(config.micro_batch, 'rl.micro_batch')


def shaped_advantages(config: ConfigDict, groups: Sequence[Sequence[Trajectory]],
                      usable: Bool[np.ndarray, 'b g']) -> tuple[Float[np.ndarray, 'b g'], dict[str, float]]:
    """The group layer's advantages, through the batch layer where its scope is the rollout batch, and two statistics.

    The rollout batch is that of all processes.
    """
    rewards = multihost.everyone(np.array([[t.reward['total'] for t in g] for g in groups], np.float32))
    usable = multihost.everyone(usable)
    ids = np.repeat(np.arange(len(rewards)), config.members)
    flat = group_advantages(rewards.ravel(), ids, usable.ravel())
    share, weight = spread_share(rewards.ravel(), ids, usable.ravel())
    _, batch_layer = ALGORITHMS[config.algorithm]
    statistics = {'spread_share': float(share) / max(float(weight), 1.0),
                  'batch_gain': float(batch_gain(flat, usable.ravel())) if batch_layer else 1.0}
    if batch_layer and config.batch_scope == 'batch':
        flat = batch_normalize(flat, usable.ravel())
    return multihost.own(np.asarray(flat).reshape(rewards.shape)), statistics


@dataclass
class Passes:
    """What the updates of a rollout batch ran, in tokens, the reference's passes included."""

    groups: int = 0
    run: int = 0
    padded: int = 0  # of arrays
    distinct: int = 0  # as many as there were to run

    def add(self, batch: GroupBatch, groups: Sequence[Sequence[Trajectory]], times: int) -> None:
        self.groups += len(groups)
        self.run += times * int(batch.valid.sum() + batch.prompt_valid.sum())
        self.padded += times * batch.places
        self.distinct += times * sum(map(distinct_tokens, groups))


def distinct_tokens(group: Sequence[Trajectory]) -> int:
    """Tokens of a group, its prompt's counted once."""
    prompt = len(group[0].prompt_tokens)
    return prompt + sum(map(length, group)) if prompt else 0


def update(config: ConfigDict, learner: Learner, reference: nnx.State | None, groups: Sequence[Sequence[Trajectory]],
           advantages: Float[np.ndarray, 'b g'], usable: Bool[np.ndarray, 'b g'],
           to_batch: Callable[[Sequence[Sequence[Trajectory]]], GroupBatch],
           generator: np.random.Generator) -> tuple[dict[str, float], Passes]:
    """All epochs and minibatches of one rollout batch.

    Returns:
        the updates' statistics over the groups that teach (means of those that were finite; maxima of maxima; the
        sampler's gap of the first update, before which the two policies are one; how many were skipped), and what they
        cost. A minibatch without any trajectory that counts makes no update.
    """
    # A question whose picture could not be had has no tokens. A group without spread stays in: it has no gradient of
    # its own and costs no pass, but the mean over the batch and the KL term speak of it as well. Where a process has
    # fewer groups than another, it gives empty rows.
    trainable = np.array([i for i, group in enumerate(groups) if group[0].prompt_tokens], int)
    _, batch_layer = ALGORITHMS[config.algorithm]
    done: list[dict[str, float]] = []
    passes, rows_each, most = Passes(), own_rows(config), multihost.largest(len(trainable))
    for _ in range(config.epochs if most else 0):
        for part in np.array_split(generator.permutation(trainable), min(config.minibatches, most)):
            now = advantages[part]
            if batch_layer and config.batch_scope == 'minibatch':
                now = minibatch_normalized(advantages, usable, part)
            # Rows of a pass have one size: of their longest suffix, or packed of all their suffixes together.
            size = lambda i: (sum if config.pack_step else max)(map(length, groups[part[i]]))
            order = sorted(range(len(part)), key=lambda i: (bool(now[i].any()), size(i)))
            count = multihost.largest(-(-len(part) // rows_each))
            rows_of = [order[i * rows_each:(i + 1) * rows_each] for i in range(count)]
            counted = [own_tokens(t) for i in part for t, counts in zip(groups[i], usable[i]) if counts]
            in_loss = InLoss(*multihost.total(np.count_nonzero(counted), sum(counted)))
            if not in_loss.trajectories:
                continue
            wide = lambda x, rows: np.pad(x[rows], ((0, rows_each - len(rows)), (0, 0)))
            given = [(rows, PolicyTargets(wide(now, rows), wide(usable[part], rows))) for rows in rows_of]

            def micro_batches() -> Iterator[tuple[GroupBatch, PolicyTargets]]:
                for rows, targets in [pair for pair in given if learner.teaches(pair[1])] or given[:1]:
                    of_rows = [groups[part[i]] for i in rows]
                    batch = to_batch(of_rows)
                    if learner.teaches(targets):
                        passes.add(batch, of_rows, times=1 if reference is None else 2)
                    yield batch, targets

            done.append(learner.rl_step(micro_batches(), in_loss, reference))
    finite = [u for u in done if not u['skipped_updates']] or done
    means = {name: float((np.max if name.endswith('_max') else np.mean)([u[name] for u in finite]))
             for name in (done[0] if done else ())}
    skipped = {'skipped_updates': sum(u['skipped_updates'] for u in done)}
    first = {name: done[0][name] for name in ('sampler_gap', 'sampler_gap_max')} if done else {}
    return means | skipped | first, passes


def minibatch_normalized(advantages: Float[np.ndarray, 'b g'], usable: Bool[np.ndarray, 'b g'],
                         part: np.ndarray) -> Float[np.ndarray, 'n g']:
    """The advantages of these groups through the batch layer of the minibatch, to which all processes give their part."""
    of_part = np.isin(np.arange(len(usable)), part)[:, None]
    everyone, counted = multihost.everyone(advantages), multihost.everyone(usable & of_part)
    return multihost.own(np.asarray(batch_normalize(everyone.ravel(), counted.ravel())).reshape(everyone.shape))[part]


def sample_groups(session: Session, student: Student, features: FeatureStore, engines: Sequence[Engine],
                  asked: Sequence[Question], step: int) -> tuple[list[list[Trajectory]], RolloutStatistics]:
    """The step's groups, scored; those that an interrupted run has left on disk are not sampled again.

    But for those in which tools or judge had failed: they are sampled as a whole, with the seeds that they had.
    """
    config = session.config
    path = trajectories_path(session, step)
    members: dict[str, dict[int, Trajectory]] = {}  # a group that was torn is on disk in part, and later as a whole
    for trajectory in read_trajectories(path):
        members.setdefault(trajectory.question.id, {})[trajectory.member] = trajectory
    found = {name: [group[g] for g in sorted(group)] for name, group in members.items()
             if len(group) == config.rl.members and not any(t.state in ASKED_AGAIN for t in group.values())}

    def note(group: list[Trajectory]) -> None:
        append_trajectories(path, group)
        found[group[0].question.id] = group

    seeds = lambda q: tuple(hash_seed(config.seed, f'rl-{step}-{q.id}-{g}') for g in range(config.rl.members))
    tasks = [Task(q, seeds(q)) for q in asked if q.id not in found]
    _, cost = rollout(tasks, engines, student.chat, session.environment(), features, rollout_limits(config.agent),
                      scorer=session.scorer(), tool_threads=config.rollout.tool_threads,
                      judge_threads=config.rollout.judge_threads, on_group=note)
    return [found[q.id] for q in asked], cost


def trajectories_path(session: Session, step: int) -> Path:
    """Where a step's trajectories are kept."""
    return session.workdir / 'rl' / 'trajectories' / f'{step:05d}.jsonl'


def behaviour(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """What the policy did: the statistics that show collapse early."""
    everyone = list(itertools.chain.from_iterable(groups))
    counted = [t for t in everyone if is_usable(t)] or everyone
    mean = lambda values: float(np.mean(list(values)))
    states = Counter(t.state for t in everyone)
    values = {
        'reward': mean(t.reward['total'] for t in counted),
        'accuracy': mean(t.reward['accuracy'] for t in counted),
        'format': mean(t.reward['format'] for t in counted),
        'evidence': mean(t.reward['evidence'] for t in counted),
        'turns': mean(len(t.turns) for t in counted),
        'response_tokens': mean(sum(len(turn.tokens) for turn in t.turns) for t in counted),
        'repetition': mean(repeats_call(t) for t in counted),
        **{state.value: states[state] / len(everyone) for state in SampleState if state is not SampleState.OK},
        **{f'calls/{tool}': mean(sum(tool_of(turn.action) == tool for turn in t.turns) for t in counted)
           for tool in TOOLS},
    }
    for kind in sorted({t.question.kind for t in counted}):
        values[f'accuracy/{kind}'] = mean(t.reward['accuracy'] for t in counted if t.question.kind == kind)
    return values


def repeats_call(trajectory: Trajectory) -> bool:
    """Whether some action was taken twice."""
    actions = [turn.action for turn in trajectory.turns]
    return len(set(actions)) < len(actions)
