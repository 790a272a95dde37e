"""SFT: the student imitates the kept expert trajectories, on its own tokens only, vision tower and projector frozen."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.inputs.groups import FINE, GroupBatch, bucket, build_groups
from sensesearch_jax.inputs.order import by_length
from sensesearch_jax.inputs.trajectories import length, own_tokens, to_row
from sensesearch_jax.learning.optimizer import make_optimizer
from sensesearch_jax.learning.steps import Learner, trained_part
from sensesearch_jax.rollout.features import FeatureStore
from sensesearch_jax.runtime.checkpoints import Checkpoints
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import memory_use
from sensesearch_jax.runtime.multihost import agreed, share, share_of, shared_folder, together, total
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.tasks.capacities import BATCHES_AT_ONCE
from sensesearch_jax.tasks.session import (Session, Student, load_student, open_session, read_trajectories, save_student,
                                           unsampled)


# Steps of the padded lengths: coarse, since every shape is a program to compile.
PROMPT_STEP, SUFFIX_STEP, FEATURE_STEP = 384, 384, 1024
LOOK_AHEAD = BATCHES_AT_ONCE - 1  # batches whose pictures fill up passes through the tower


def run(config: ConfigDict, workdir: Workdir) -> None:
    """SFT alone, on the trajectories at `config.sft.data`; writes workdir/sft/policy."""
    student = load_student(config.policy, config, make_mesh(config.mesh), 'float32')  # what is trained is float32
    path = Path(config.sft.data)
    trajectories = read_trajectories(path)
    if not trajectories:
        raise UserError(f'sft.data {str(path)!r} holds no trajectories; give the kept.jsonl of a cold start.')
    with open_session(config, workdir) as session:
        sft(session, student, session.features(student), trajectories)


def sft(session: Session, student: Student, features: FeatureStore, trajectories: Sequence[Trajectory]) -> Path:
    """Trains for `sft.epochs` and writes a policy directory; goes on from the last checkpoint. Returns the directory."""
    config, workdir = session.config.sft, session.workdir
    shared = shared_folder(workdir.path) / 'sft'
    folder = shared / 'policy'
    if agreed(workdir.stage_done('sft')):
        return folder
    shuffled = (grain.MapDataset.source(list(range(len(trajectories)))).seed(session.config.seed).shuffle()
                .repeat(config.epochs).batch(config.batch, batch_fn=list))
    key = lambda i: row_length(len(trajectories[i].prompt_tokens), length(trajectories[i]))
    order = by_length(list(shuffled), key, config.length_window, session.config.seed)
    steps, rows = len(order), config.micro_batch
    learner = Learner(student.policy, make_optimizer(config, steps), suppressed=suppressed_mask(student),
                      remat=config.remat, mesh=session.mesh, dtype=config.dtype, threads=config.threads,
                      trained=trained_part(config))
    with Checkpoints(shared / 'checkpoints', keep=1) as checkpoints:
        start = resume(learner, checkpoints)
        session.metrics.resume('sft', start)
        with Progress('sft', steps, initial=start) as bar:
            for step in range(start, steps):
                began = time.monotonic()
                features.begin_step()
                chosen = [trajectories[i] for i in order[step]]
                ahead = [trajectories[i] for later in order[step + 1:step + 1 + LOOK_AHEAD] for i in later]
                places: Counter[str] = Counter()
                values = learner.sft_step(micro_batches(student, features, chosen, rows, ahead, places),
                                          sum(map(own_tokens, chosen)))
                used, size = total(places['used'], places['all'])
                session.metrics.write('sft', step + 1, values | memory_use() | {
                    'padding_share': 1 - used / size, 'step_s': time.monotonic() - began})
                bar.update(loss=values['loss'])
                if learner.skipped_in_a_row >= config.max_skipped_updates:
                    raise not_finite(learner, checkpoints, 'sft', step + 1 - learner.skipped_in_a_row)
                if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps and not learner.skipped_in_a_row:
                    checkpoints.save(step + 1, training_state(learner))
    save_student(learner.policy, student, folder, config.dtype)
    workdir.mark_done('sft', {'steps': steps, 'trajectories': len(trajectories)})
    return folder


def micro_batches(student: Student, features: FeatureStore, chosen: Sequence[Trajectory], rows: int,
                  ahead: Sequence[Trajectory], places: Counter[str]) -> Iterator[GroupBatch]:
    """A step's trajectories in batches of `rows` rows in all processes, each made when it is asked for.

    Args:
        ahead: trajectories of later steps, whose pictures fill up passes through the tower.
        places: counts `used` tokens and `all` places of this process's rows.
    """
    for first in range(0, len(chosen), rows):
        own = [[t] for t in share(chosen[first:first + rows], rows, 'sft.micro_batch')]
        batch = together(row_batch(student, features, own, 1, share_of(rows, 'sft.micro_batch'), ahead))
        places.update(used=int(batch.valid.sum() + batch.prompt_valid.sum()), all=batch.places)
        yield batch


def row_length(prompt: int, suffix: int) -> tuple[int, int]:
    """What rows are sorted by: the size that the prompt is padded to, and within one size the suffix."""
    return bucket(prompt - 1, PROMPT_STEP, FINE), suffix


def training_state(learner: Learner) -> dict:
    """What a checkpoint holds of a learner."""
    state = {'parameters': learner.parameters, 'moments': learner.moments}
    return state if learner.mean is None else state | {'mean': learner.mean}


def keep(learner: Learner, checkpoints: Checkpoints, step: int) -> None:
    """Saves the learner's state as that after `step` steps, unless the checkpoint of that step or a later one is there."""
    if step > (checkpoints.latest_step() or 0):
        checkpoints.save(step, training_state(learner))


def not_finite(learner: Learner, checkpoints: Checkpoints, stage: str, step: int) -> UserError:
    """The end of a run whose updates are no longer finite; its state after `step` steps, the last good one, is kept."""
    keep(learner, checkpoints, step)
    return UserError(f'The gradients of the last {learner.skipped_in_a_row} updates were not finite, from step {step + 1} on '
                     f'({stage}.max_skipped_updates), and none was made; look at what the step trained on, or start anew '
                     f'with a smaller {stage}.learning_rate. {checkpoints.directory} holds the state before them.')


def resume(learner: Learner, checkpoints: Checkpoints) -> int:
    """Puts the last checkpoint into the learner; returns its step, 0 if there is none."""
    restored = checkpoints.restore(training_state(learner))
    if restored is None:
        return 0
    learner.parameters, learner.moments = restored.arrays['parameters'], restored.arrays['moments']
    learner.mean = restored.arrays.get('mean')
    return restored.step


def suppressed_mask(student: Student) -> np.ndarray:
    """[V] True for ids that are never sampled; the trainer's distribution leaves them out like the sampler's."""
    mask = np.zeros(student.policy.sizes.language.vocabulary, bool)
    mask[unsampled(student)] = True
    return mask


def row_batch(student: Student, features: FeatureStore, groups: Sequence[Sequence[Trajectory]], members: int,
              rows: int, ahead: Sequence[Trajectory] = (), pack_step: int = 0) -> GroupBatch:
    """Groups of trajectories as one batch of `rows` rows; `ahead`: those that come next; `pack_step`: see `build_groups`."""
    sizes = student.policy.sizes
    pictures = lambda trajectories: (image for t in trajectories for image in t.images)
    table = features.table(pictures(itertools.chain(*groups)), pictures(ahead))
    return build_groups([to_row(group) for group in groups], table, image_token=sizes.image_token,
                        merge=sizes.vision.merge_size, members=members, batch=rows, prompt_step=PROMPT_STEP,
                        suffix_step=SUFFIX_STEP, feature_step=FEATURE_STEP * members, pack_step=pack_step)
