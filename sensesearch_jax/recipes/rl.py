"""RL: BN-GSPO (or GSPO, GRPO) on groups of trajectories sampled with real tools."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.mixing import Pool, step_questions
from sensesearch_jax.data.questions import pools_of
from sensesearch_jax.errors import UserError, field
from sensesearch_jax.evaluation.behaviour import behaviour
from sensesearch_jax.recipes.checkpoint_policy import note_start
from sensesearch_jax.recipes.resume import (
    keep,
    not_finite,
    open_checkpoints,
    recorded,
    resume,
    saved_if_stopped,
    training_state,
)
from sensesearch_jax.recipes.rl_rollout import (
    after_fatal_share,
    chosen_groups,
    has_spread,
    prune_trajectories,
    rl_engines,
    tools_down,
    trajectories_path,
)
from sensesearch_jax.recipes.rl_samplers import (
    OverlappedSampler,
    Sampler,
    StepwiseSampler,
    sample_step,
)
from sensesearch_jax.recipes.rl_update import (
    ALGORITHMS,
    by_member,
    distinct_tokens,
    micro_batch_rows,
    rollout_advantages,
    update,
)
from sensesearch_jax.recipes.rows import row_batch, suppressed_mask
from sensesearch_jax.recipes.run_report import groups_to_show, write_run_report
from sensesearch_jax.recipes.session import (
    LoadedPolicy,
    Session,
    every_process,
    load_policy_directory,
    open_session,
    save_learned,
)
from sensesearch_jax.recipes.validation import Validation
from sensesearch_jax.rewards.scorer import is_usable
from sensesearch_jax.rollout.replicas import warm_up
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost, stopping
from sensesearch_jax.runtime.alarm_log import AlarmLog
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import memory_use
from sensesearch_jax.runtime.profiling import Profiler
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.advantages import BASELINES
from sensesearch_jax.training.batch_losses import Objective
from sensesearch_jax.training.flops import per_chip_hour, utilization
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trained_part import start_dtype, to_train, trained_part
from sensesearch_jax.training.trainer import Learner


def run(config: ConfigDict, workdir: Workdir) -> None:
    """RL alone, from the policy directory `config.policy`; writes workdir/rl/policy and report.html."""
    dtype = start_dtype(config.rl)
    loaded = load_policy_directory(config.policy, config, make_mesh(config.mesh), dtype)
    with open_session(config, workdir) as session:
        rl(session, loaded, session.features(loaded), pools_of(workdir, config.data, 'rl'))
        shown = groups_to_show(
            every_process(trajectories_path(session, config.rl.steps - 1), session)
        )
        about = 'They are of the last step; samples are the members of a group.'
        write_run_report(session, 'RL', shown, about, session.protocol)


def rl(
    session: Session, loaded: LoadedPolicy, features: FeatureStore, pools: Sequence[Pool]
) -> Path:
    """Trains for `rl.steps` rollout batches and writes a policy directory.

    Step s asks the same questions with the same seeds whenever it runs, and finished groups of an
    unfinished step are kept on disk, so that a killed run goes on as if nothing had happened. In a
    program of several processes each samples its share of the questions and gives them to training
    as its rows; metrics are the processes' means.

    Where `rl.validate_every` says so, the policy is validated, and with `rl.result` 'best' the policy
    that did best is written in the place of the last one.

    Args:
        session: of the run.
        loaded: the policy to train, in the type of `start_dtype`; it stays as it is, and is the KL
            term's reference.
        features: of its vision tower.
        pools: the questions by source, of all processes.

    Returns:
        The policy directory.

    Raises:
        UserError: `rl.steps` was lowered, the gradients are no longer finite, the tools failed on
            all trajectories of `rl.max_failed_steps` steps, or an alarm of `alarms.stop_on` was
            raised.
        Stopped: a process was told to stop; the state is saved.
    """
    config, workdir = session.config.rl, session.workdir
    shared = multihost.shared_folder(workdir.path) / 'rl'
    folder = shared / 'policy'
    if multihost.broadcast(
        workdir.stage_done('rl') and workdir.stage_result('rl')['steps'] >= config.steps
    ):
        return folder
    check_rounds(config, pools)
    objective = make_objective(config)
    updates = config.steps * config.epochs * config.minibatches
    start_policy = to_train(loaded.policy, config, session.config.seed)
    learner = Learner(
        start_policy,
        make_optimizer(config, updates),
        suppressed=suppressed_mask(loaded),
        temperature=config.temperature,
        objective=objective,
        remat=config.remat,
        mesh=session.mesh,
        dtype=config.dtype,
        threads=config.threads,
        averaged=config.averaged,
        trained=trained_part(config),
    )
    # with adapters those that add nothing, which need no second copy of the policy
    reference = nnx.state(start_policy, trained_part(config)) if config.kl_coefficient else None
    engines = rl_engines(session, loaded, learner)
    most = config.questions_per_step * config.sampling_rounds
    asked_at = step_questions(pools, most, session.config.data.seed)
    if session.config.rollout.warm_up:
        warm_up(engines, features)
    note_start(shared, loaded.folder)
    with (
        stopping.between_steps(),
        open_checkpoints(shared, session.config.checkpoint) as checkpoints,
    ):
        start = made = saved = resume(learner, checkpoints)
        if start > config.steps:
            raise UserError(
                f'rl.steps is {config.steps}, but {start} are made in {workdir.path}; give as many or more.'
            )
        failed = 0  # steps in a row without any trajectory to learn from
        session.metrics.resume('rl', start)
        validate = Validation(session, 'rl', config.steps, loaded, features, learner, checkpoints)
        validate(start)
        before = recorded(workdir.path, 'rl')
        alarmed = session.config.alarms, workdir, 'rl', start, multihost.is_main(), before
        traced = session.config.profile_steps, start, config.steps

        def asked_here(step):
            # round by round: with any number of processes the first round asks the same questions
            asked, count = asked_at(step), config.questions_per_step
            rounds = (asked[i : i + count] for i in range(0, len(asked), count))
            shares = (multihost.local_rows(r, count, 'rl.questions_per_step') for r in rounds)
            return [question for share in shares for question in share]

        sampler = (
            OverlappedSampler(session, loaded, features, engines, asked_here)
            if config.max_staleness
            else StepwiseSampler(session, loaded, features, engines)
        )
        with (
            sampler,
            Progress('rl', config.steps, initial=start) as bar,
            AlarmLog(*alarmed) as alarms,
            Profiler(workdir / 'profile' / 'rl', 'rl', *traced) as profiler,
        ):
            for step in range(start, config.steps):
                updates = learner.updates
                with saved_if_stopped(learner, checkpoints, made), profiler.step(step):
                    asked = asked_here(step)
                    values = rl_step(
                        session, loaded, features, sampler, learner, reference, asked, step
                    )
                    values = multihost.global_means(values)
                failed = 0 if values['usable_share'] else failed + 1
                if learner.updates > updates:
                    made = step + 1
                    if config.averaged and (later := made - config.steps // 3) > 0:
                        learner.average(1 / later)
                session.metrics.write('rl', step + 1, values)
                alarms.note(step + 1, values, bar)
                bar.update(
                    reward=values['reward'], accuracy=values['accuracy'], format=values['format']
                )
                if learner.skipped_in_a_row >= config.max_skipped_updates:
                    raise not_finite(learner, checkpoints, 'rl', made)
                if error := alarms.stopping():
                    keep(learner, checkpoints, made)
                    raise error
                # The last step is as good as any other, and the tools may be back when it is asked
                # again.
                if failed >= config.max_failed_steps or (failed and step + 1 == config.steps):
                    keep(learner, checkpoints, made)
                    raise tools_down(session, step, failed)
                # A step that taught nothing is made again when the run goes on.
                if made == step + 1:
                    # The last one too, from which a run that is given more steps goes on.
                    due = made % config.checkpoint_every == 0 or made == config.steps
                    if due or validate.due(made):
                        checkpoints.save(made, training_state(learner))
                        # The new one is not yet on disk; a restart may have to go on from the last.
                        if config.keep_trajectories:
                            prune_trajectories(session, min(saved, made - config.keep_trajectories))
                        saved = made
                    validate(made)
                with saved_if_stopped(learner, checkpoints, made):
                    stopping.check(step_ends=True)
        if config.result == 'best':
            validate.restore_best()
    save_learned(learner, loaded, folder, config)
    workdir.mark_done('rl', {'steps': config.steps})
    return folder


def check_rounds(config: ConfigDict, pools: Sequence[Pool]) -> None:
    """Whether there are as many questions as the rounds of a step may ask.

    Raises:
        UserError: there are fewer, and some would be asked twice.
    """
    most = config.questions_per_step * config.sampling_rounds
    there = sum(len(pool.questions) for pool in pools)
    if config.sampling_rounds > 1 and most > there:
        raise UserError(
            f'rl.sampling_rounds {config.sampling_rounds} of rl.questions_per_step {config.questions_per_step} may ask '
            f'{most} questions in a step, but data.rl has {there}; give fewer, or more sources.'
        )


def make_objective(config: ConfigDict) -> Objective:
    """The loss that the config's `rl` names.

    Raises:
        UserError: an unknown algorithm, baseline, scope or mean, or a number out of its range.
    """
    if config.algorithm not in ALGORITHMS:
        raise UserError(
            f"rl.algorithm '{config.algorithm}' is unknown; choose from {list(ALGORITHMS)}."
        )
    if config.batch_scope not in ('batch', 'minibatch'):
        raise UserError(
            f"rl.batch_scope '{config.batch_scope}' is unknown; choose 'batch' or 'minibatch'."
        )
    if config.baseline not in BASELINES:
        raise UserError(
            f"rl.baseline '{config.baseline}' is unknown; choose from {list(BASELINES)}."
        )
    if config.importance not in ('', 'token', 'sequence'):
        raise UserError(
            f"rl.importance '{config.importance}' is unknown; choose 'token', 'sequence' or '' (none)."
        )
    for name in ('entropy_coefficient', 'kl_coefficient'):
        if not config[name] >= 0:
            raise UserError(f'rl.{name} is {config[name]}; give 0 or more.')
    if not config.importance_cap > 0:
        raise UserError(f'rl.importance_cap is {config.importance_cap}; give more than 0.')
    if (config.aggregation == 'constant') != bool(config.constant_length):
        raise UserError(
            f"rl.constant_length is {config.constant_length} and rl.aggregation '{config.aggregation}'; give a length "
            "above 0 with 'constant', and 0 without."
        )
    algorithm, dual_clip = ALGORITHMS[config.algorithm], config.dual_clip or None
    temperatures = config.soft_positive, config.soft_negative
    objective = Objective(
        ratio=algorithm.ratio,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=dual_clip if algorithm.ratio == 'token' and not algorithm.soft else None,
        kl_coefficient=config.kl_coefficient,
        soft_gate=temperatures if algorithm.soft else None,
        aggregation=config.aggregation or algorithm.aggregation,
        constant_length=config.constant_length or algorithm.constant_length,
        importance=config.importance or None,
        importance_cap=config.importance_cap,
        entropy_coefficient=config.entropy_coefficient,
    )
    with field('rl'):
        objective.check()
    return objective


def rl_step(
    session: Session,
    loaded: LoadedPolicy,
    features: FeatureStore,
    sampler: Sampler,
    learner: Learner,
    reference: nnx.State | None,
    asked: Sequence[Question],
    step: int,
) -> dict[str, float]:
    """One rollout batch and the updates on it.

    Args:
        session: of the run.
        loaded: the policy that was trained from.
        features: of its vision tower.
        sampler: gets the learner's present parameters.
        learner: updated.
        reference: parameters of the KL term's reference; None without that term.
        asked: this process's questions of the step, of all `rl.sampling_rounds`.
        step: from 0.

    Returns:
        The step's metrics; those of behaviour are over all groups that were sampled.

    Raises:
        Stopped: a process was told to stop; the groups that were finished are on disk.
    """
    config, began = session.config.rl, time.monotonic()
    sampler.begin(learner, step)
    everything, cost = sample_step(sampler, config.sampling_rounds, asked, step)
    sampled = time.monotonic()
    sampler.end()
    stopping.check()  # of all processes together, however many rounds each has made
    all_sampled = time.monotonic()
    groups = chosen_groups(everything, len(asked) // config.sampling_rounds)
    usable = by_member([[is_usable(t) for t in g] for g in groups], config.members, bool)
    advantages, values = rollout_advantages(config, groups, usable)

    def to_batch(part):
        sizes = config.members, micro_batch_rows(config)
        options = {'pack_step': config.pack_step, 'fatal_mistakes': config.fatal_mistakes}
        return multihost.pad_alike(row_batch(loaded, features, part, *sizes, **options))

    draws = np.random.default_rng([session.config.seed, step])
    updates, passes = update(
        config, learner, reference, groups, advantages, usable, to_batch, draws
    )
    ended = time.monotonic()
    slowest = multihost.slowest(sampled - began)  # the updates are one program of all
    tokens, trajectories = sum(map(distinct_tokens, everything)), sum(map(len, everything))
    return (
        behaviour(everything)
        | values
        | updates
        | memory_use()
        | slowest
        | {
            'token_amplification': (cost.tokens_run + passes.run)
            / max(tokens + passes.distinct, 1),
            # of the step, for want of rollout.feature_cache_gib
            'pictures_encoded_again': features.encoded_again,
            'feature_cache_wanted_gib': features.step_bytes / (1 << 30),
            'vision_amplification': features.images_encoded / max(features.distinct_images, 1),
            'padding_share': 1 - passes.run / max(passes.padded, 1),
            'usable_share': float(usable.sum() / max(sum(map(len, groups)), 1)),
            # of the groups that were sampled, for want of spread in others
            'groups_without_use': 1 - len(groups) / max(len(everything), 1),
            'spread_share': float(np.mean([has_spread(group) for group in everything])),
            'after_fatal_share': after_fatal_share(groups, config.fatal_mistakes),
            'trained_share': passes.groups / max(config.epochs * len(groups), 1),
            'tool_wait_share': cost.waiting_for_tools / max(cost.seconds, 1e-9),
            'judge_wait_share': cost.waiting_for_judge / max(cost.seconds, 1e-9),
            'members_mean': trajectories / max(len(everything), 1),
            'rollouts_per_second': trajectories / max(cost.seconds, 1e-9),
            'trajectories_per_chip_hour': per_chip_hour(
                trajectories, ended - began, session.mesh.size / jax.process_count()
            ),
            # a group's prompt counted once
            'tokens_per_second': multihost.global_sums(tokens)[0] / max(ended - began, 1e-9),
            'sampled_tokens_per_second': cost.sampled_tokens / max(cost.seconds, 1e-9),
            'turn_s_p50': float(np.percentile(cost.turn_seconds or [0], 50)),
            'turn_s_p95': float(np.percentile(cost.turn_seconds or [0], 95)),
            'compilations': sampler.engines[0].compiles + features.compiles,
            'rollout_s': all_sampled - began,
            'step_s': ended - began,
        }
        # of the updates alone: tools and sampling have no such measure
        | utilization(passes.flops, ended - all_sampled, session.mesh.size / jax.process_count())
        | sampler.metrics(groups, step)
    )
