"""SFT: cross-entropy of the response tokens of the kept expert trajectories, vision tower and
projector frozen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.batching.from_trajectories import length, response_tokens
from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.batching.length_bucketing import balanced, by_length
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.capacities import BATCHES_AT_ONCE
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
from sensesearch_jax.recipes.rows import row_batch, row_length, suppressed_mask
from sensesearch_jax.recipes.run_report import write_run_report
from sensesearch_jax.recipes.session import (
    LoadedPolicy,
    Session,
    load_policy_directory,
    open_session,
    read_trajectories,
    save_learned,
)
from sensesearch_jax.recipes.validation import Validation
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost, stopping
from sensesearch_jax.runtime.alarm_log import AlarmLog
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import memory_use
from sensesearch_jax.runtime.profiling import Profiler
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.flops import per_chip_hour, training_flops, utilization
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trained_part import start_dtype, to_train, trained_part
from sensesearch_jax.training.trainer import Learner

LOOK_AHEAD = BATCHES_AT_ONCE - 1  # batches whose pictures fill up passes through the tower


def run(config: ConfigDict, workdir: Workdir) -> None:
    """SFT alone, on the trajectories at `config.sft.data`; writes workdir/sft/policy and
    report.html.
    """
    dtype = start_dtype(config.sft)
    loaded = load_policy_directory(config.policy, config, make_mesh(config.mesh), dtype)
    path = Path(config.sft.data)
    trajectories = read_trajectories(path)
    if not trajectories:
        raise UserError(
            f'sft.data {str(path)!r} holds no trajectories; give the kept.jsonl of a cold start or an import.'
        )
    with open_session(config, workdir) as session:
        sft(session, loaded, session.features(loaded), trajectories)
        shown = {'demonstration': trajectories}
        write_run_report(session, 'SFT', shown, 'They are what was learned from.', DEFAULT)


def sft(
    session: Session,
    loaded: LoadedPolicy,
    features: FeatureStore,
    trajectories: Sequence[Trajectory],
) -> Path:
    """Trains for `sft.epochs` and writes a policy directory; goes on from the last checkpoint.

    Where `sft.validate_every` says so, the policy is validated, and with `sft.result` 'best' the
    policy that did best is written in the place of the last one.

    Args:
        session: of the run.
        loaded: the policy to train, in the type of `start_dtype`; it stays as it is.
        features: of its vision tower.
        trajectories: with their tokens, the same in all processes.

    Returns:
        The policy directory.

    Raises:
        UserError: the gradients are no longer finite.
        Stopped: a process was told to stop; the state is saved.
    """
    config, workdir = session.config.sft, session.workdir
    shared = multihost.shared_folder(workdir.path) / 'sft'
    folder = shared / 'policy'
    if multihost.broadcast(workdir.stage_done('sft')):
        return folder
    trajectories, held_out = hold_out(trajectories, config.held_out, session.config.seed)
    shuffled = (
        grain.MapDataset.source(list(range(len(trajectories))))
        .seed(session.config.seed)
        .shuffle()
        .repeat(config.epochs)
        .batch(config.batch, batch_fn=list)
    )

    def key(i):
        return row_length(len(trajectories[i].prompt_tokens), length(trajectories[i]))

    order = by_length(list(shuffled), key, config.length_window, session.config.seed)
    steps = len(order)
    learner = Learner(
        to_train(loaded.policy, config, session.config.seed),
        make_optimizer(config, steps),
        suppressed=suppressed_mask(loaded),
        remat=config.remat,
        mesh=session.mesh,
        dtype=config.dtype,
        threads=config.threads,
        trained=trained_part(config),
    )

    def held_out_loss() -> float:
        features.begin_step()
        tokens: Counter[str] = Counter()
        return learner.sft_loss(micro_batches(loaded, features, held_out, config, (), tokens))

    note_start(shared, loaded.folder)
    with (
        stopping.between_steps(),
        open_checkpoints(shared, session.config.checkpoint) as checkpoints,
    ):
        start = resume(learner, checkpoints)
        session.metrics.resume('sft', start)
        loss = held_out_loss if held_out else None
        validate = Validation(session, 'sft', steps, loaded, features, learner, checkpoints, loss)
        validate(start)
        before = recorded(workdir.path, 'sft')
        alarmed = session.config.alarms, workdir, 'sft', start, multihost.is_main(), before
        traced = session.config.profile_steps, start, steps
        with (
            Progress('sft', steps, initial=start) as bar,
            AlarmLog(*alarmed) as alarms,
            Profiler(workdir / 'profile' / 'sft', 'sft', *traced) as profiler,
        ):
            for step in range(start, steps):
                began = time.monotonic()
                features.begin_step()
                chosen = [trajectories[i] for i in order[step]]
                ahead = [
                    trajectories[i]
                    for later in order[step + 1 : step + 1 + LOOK_AHEAD]
                    for i in later
                ]
                tokens: Counter[str] = Counter()
                with profiler.step(step):
                    values = learner.sft_step(
                        micro_batches(loaded, features, chosen, config, ahead, tokens),
                        sum(map(response_tokens, chosen)),
                    )
                used, padded, flops = multihost.global_sums(
                    tokens['used'], tokens['padded'], tokens['flops']
                )
                seconds = time.monotonic() - began
                cost = {
                    'padding_share': 1 - used / padded,
                    'response_length': sum(map(response_tokens, chosen)) / len(chosen),
                    'tokens_per_second': used / seconds,
                    'trajectories_per_chip_hour': per_chip_hour(
                        len(chosen), seconds, session.mesh.size
                    ),
                    'step_s': seconds,
                }
                cost |= utilization(flops, seconds, session.mesh.size)
                cost |= multihost.slowest(tokens['seconds'])
                session.metrics.write('sft', step + 1, values | memory_use() | cost)
                alarms.note(step + 1, values | cost, bar)
                bar.update(loss=values['loss'])
                made = step + 1 - learner.skipped_in_a_row
                if learner.skipped_in_a_row >= config.max_skipped_updates:
                    raise not_finite(learner, checkpoints, 'sft', made)
                if error := alarms.stopping():
                    keep(learner, checkpoints, made)
                    raise error
                if not learner.skipped_in_a_row:  # else these steps are made again
                    due = made % config.checkpoint_every == 0 and made < steps
                    if due or validate.due(made):
                        checkpoints.save(made, training_state(learner))
                    validate(made)
                with saved_if_stopped(learner, checkpoints, made):
                    stopping.check(step_ends=True)
        if config.result == 'best':
            validate.restore_best()
    save_learned(learner, loaded, folder, config)
    workdir.mark_done('sft', {'steps': steps, 'trajectories': len(trajectories)})
    return folder


def hold_out(
    trajectories: Sequence[Trajectory], count: int, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Trajectories to train on, and those whose loss alone is looked at.

    Args:
        trajectories: all of them.
        count: how many are held out, or a few more: those of one question stay together.
        seed: of the choice of questions.

    Raises:
        UserError: none would be left to train on.
    """
    by_question: dict[tuple[str, str], list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        question = trajectory.question
        by_question.setdefault((question.source, question.id), []).append(i)
    groups = list(by_question.values())
    held: set[int] = set()
    for group in np.random.default_rng([seed, len(groups)]).permutation(len(groups)):
        if len(held) >= count:
            break
        held.update(groups[group])
    if count and len(held) == len(trajectories):
        raise UserError(
            f'sft.held_out is {count}, which leaves none of the {len(trajectories)} trajectories to train on; '
            'hold out fewer.'
        )
    trained = [t for i, t in enumerate(trajectories) if i not in held]
    return trained, [trajectories[i] for i in sorted(held)]


def micro_batches(
    loaded: LoadedPolicy,
    features: FeatureStore,
    chosen: Sequence[Trajectory],
    config: ConfigDict,
    ahead: Sequence[Trajectory],
    tokens: Counter[str],
) -> Iterator[GroupBatch]:
    """A step's trajectories as micro-batches, each made when it is asked for.

    Args:
        loaded: the policy.
        features: of its vision tower.
        chosen: the step's trajectories, of all processes.
        config: of SFT: rows of a micro-batch, of all processes, and trajectories of a row.
        ahead: trajectories of later steps, whose images fill up passes through the tower.
        tokens: counts `used` tokens, `padded` ones, padding included, and the model's `flops`, of
            this process's rows, and the `seconds` that making them took.
    """
    rows, members = config.micro_batch, config.row_trajectories
    groups = [[trajectory] for trajectory in chosen]
    if members > 1:  # rows of like length, which threads are at for as long as each other
        groups = balanced(chosen, lambda t: len(t.prompt_tokens) + length(t), members)
    for first in range(0, len(groups), rows):
        own = multihost.local_rows(groups[first : first + rows], rows, 'sft.micro_batch')
        began = time.monotonic()
        each = multihost.rows_per_process(rows, 'sft.micro_batch')
        batch = row_batch(
            loaded, features, own, members, each, ahead, config.pack_step, shared=members > 1
        )
        tokens['seconds'] += time.monotonic() - began
        batch = multihost.pad_alike(batch)
        tokens.update(
            used=int(batch.valid.sum() + batch.prompt_valid.sum()),
            padded=batch.padded_tokens,
            flops=training_flops(
                loaded.policy.sizes.language, batch, adapters=config.lora.rank > 0
            ),
        )
        yield batch
