"""The updates of one rollout batch: advantages, minibatches, micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Shaped
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.batching.from_trajectories import length, response_tokens
from sensesearch_jax.batching.group_batch import GroupBatch
from sensesearch_jax.model.config import LanguageSizes
from sensesearch_jax.runtime import multihost
from sensesearch_jax.training.advantages import (
    batch_gain,
    batch_normalize,
    frac_reward_zero_std,
    group_advantages,
)
from sensesearch_jax.training.batch_losses import InLoss, PolicyTargets
from sensesearch_jax.training.flops import training_flops
from sensesearch_jax.training.trainer import Learner


class Algorithm(NamedTuple):
    """A published objective, as options of the one loss.

    Args:
        ratio: 'sequence' or 'token'.
        batch_layer: whether the advantages are normalized over the batch too.
        soft: whether the ratio is gated softly, not clipped.
        aggregation: see `losses.policy_loss`.
        constant_length: of aggregation 'constant'.
    """

    ratio: str
    batch_layer: bool = False
    soft: bool = False
    aggregation: str | None = None
    constant_length: float = 1.0


ALGORITHMS = {
    'bn_gspo': Algorithm('sequence', batch_layer=True),
    'gspo': Algorithm('sequence'),
    'grpo': Algorithm('token'),
    'sapo': Algorithm('token', soft=True, aggregation='sequence'),
    'luspo': Algorithm('sequence', aggregation='constant'),
}
"""The choices of the config field `rl.algorithm`."""


def micro_batch_rows(config: ConfigDict) -> int:
    """Rows of a micro-batch that come from this process."""
    return multihost.rows_per_process(config.micro_batch, 'rl.micro_batch')


def by_member(
    values: Sequence[Sequence[float]], members: int, dtype: type
) -> Shaped[np.ndarray, 'b g']:
    """Values of groups of at most `members` trajectories as one array, [groups, members], with 0 in the
    places of those that a group does not have.

    Args:
        values: by group and trajectory.
        members: G.
        dtype: of the array.
    """
    found = np.zeros((len(values), members), dtype)
    for row, of_group in zip(found, values):
        row[: len(of_group)] = of_group
    return found


def rollout_advantages(
    config: ConfigDict, groups: Sequence[Sequence[Trajectory]], usable: Bool[np.ndarray, 'b g']
) -> tuple[Float[np.ndarray, 'b g'], dict[str, float]]:
    """Advantages of this process's groups: the group layer, and the batch layer where its scope is
    the rollout batch of all processes.

    Args:
        config: the run's `rl`.
        groups: this process's, at most G trajectories each.
        usable: [groups, G], whether a trajectory is there and counts.

    Returns:
        ([groups, G] advantages, `frac_reward_zero_std` and `batch_gain` of all processes).
    """
    rewards = multihost.allgather(
        by_member([[t.reward['total'] for t in g] for g in groups], config.members, np.float32)
    )
    usable = multihost.allgather(usable)
    ids = np.repeat(np.arange(len(rewards)), config.members)
    batch_layer = ALGORITHMS[config.algorithm].batch_layer
    flat, equal, gain = _advantages(
        rewards.ravel(),
        ids,
        usable.ravel(),
        config.baseline,
        batch_layer and config.batch_scope == 'batch',
    )
    statistics = {
        'frac_reward_zero_std': float(equal),
        'batch_gain': float(gain) if batch_layer else 1.0,
    }
    return multihost.local_part(np.asarray(flat).reshape(rewards.shape)), statistics


@functools.partial(jax.jit, static_argnames=('baseline', 'normalized'))
def _advantages(rewards, ids, usable, baseline: str, normalized: bool):
    """Advantages of [trajectories], the share of groups of equal rewards, and the batch layer's gain.

    One program: each of the many small operations would be one of its own.
    """
    flat = group_advantages(rewards, ids, usable, baseline=baseline)
    equal, count = frac_reward_zero_std(rewards, ids, usable)
    final = batch_normalize(flat, usable) if normalized else flat
    return final, equal / jnp.maximum(count, 1), batch_gain(flat, usable)


@dataclass
class Passes:
    """Tokens and model FLOPs of the passes over a rollout batch, the reference's included."""

    text: LanguageSizes
    adapters: bool = False  # whether these alone are trained
    groups: int = 0
    run: int = 0
    padded: int = 0  # of arrays
    distinct: int = 0  # as many as there were to run
    flops: float = 0.0

    def add(
        self, batch: GroupBatch, groups: Sequence[Sequence[Trajectory]], reference: bool
    ) -> None:
        """Counts a micro-batch.

        Args:
            batch: the micro-batch.
            groups: whose tokens it holds.
            reference: whether the reference's forward pass is made too.
        """
        times = 1 + reference
        self.groups += len(groups)
        self.run += times * int(batch.valid.sum() + batch.prompt_valid.sum())
        self.padded += times * batch.padded_tokens
        self.distinct += times * sum(map(distinct_tokens, groups))
        self.flops += training_flops(self.text, batch, reference, self.adapters)


def distinct_tokens(group: Sequence[Trajectory]) -> int:
    """Tokens of a group, its prompt's counted once."""
    prompt = len(group[0].prompt_tokens)
    return prompt + sum(map(length, group)) if prompt else 0


def update(
    config: ConfigDict,
    learner: Learner,
    reference: nnx.State | None,
    groups: Sequence[Sequence[Trajectory]],
    advantages: Float[np.ndarray, 'b g'],
    usable: Bool[np.ndarray, 'b g'],
    to_batch: Callable[[Sequence[Sequence[Trajectory]]], GroupBatch],
    generator: np.random.Generator,
) -> tuple[dict[str, float], Passes]:
    """All epochs and minibatches of updates on one rollout batch.

    A minibatch without any trajectory that counts makes no update.

    Args:
        config: the run's `rl`.
        learner: updated.
        reference: parameters of the KL term's reference; None without that term.
        groups: this process's, G trajectories each.
        advantages: [groups, G].
        usable: [groups, G], whether a trajectory counts.
        to_batch: makes a micro-batch of at most `micro_batch_rows` groups.
        generator: of the minibatches' shuffles; the same in all processes.

    Returns:
        Statistics and passes. Statistics are means over the updates whose gradient was finite
        (maxima of those named `_max`); `sampler_gap` and `sampler_gap_max` are of the first update,
        before which trainer and sampler have the same parameters; `skipped_updates` is a count.
    """
    # A question whose picture could not be had has no tokens. A group without spread stays in: it
    # has no gradient of its own and costs no pass, but the mean over the batch and the KL term
    # speak of it as well. Where a process has fewer groups than another, it gives empty rows.
    trainable = np.array([i for i, group in enumerate(groups) if group[0].prompt_tokens], int)
    batch_layer = ALGORITHMS[config.algorithm].batch_layer
    done: list[dict[str, float]] = []
    passes = Passes(learner.sizes.language, learner.adapted)
    rows_each, most = micro_batch_rows(config), multihost.global_max(len(trainable))
    old = None
    if config.importance and config.epochs * min(config.minibatches, most) > 1:
        old = old_log_probs(learner, groups, trainable, most, rows_each, to_batch)
    for _ in range(config.epochs if most else 0):
        for part in np.array_split(generator.permutation(trainable), min(config.minibatches, most)):
            now = advantages[part]
            if batch_layer and config.batch_scope == 'minibatch':
                now = minibatch_normalized(advantages, usable, part)

            # Rows of a pass have one size: of their longest suffix, or packed of all their suffixes
            # together.
            def size(i):
                return (sum if config.pack_step else max)(map(length, groups[part[i]]))

            order = sorted(range(len(part)), key=lambda i: (bool(now[i].any()), size(i)))
            count = multihost.global_max(-(-len(part) // rows_each))
            rows_of = [order[i * rows_each : (i + 1) * rows_each] for i in range(count)]
            counted = [
                response_tokens(t, config.fatal_mistakes)
                for i in part
                for t, counts in zip(groups[i], usable[i])
                if counts
            ]
            in_loss = InLoss(*multihost.global_sums(np.count_nonzero(counted), sum(counted)))
            if not in_loss.trajectories:
                continue

            def wide(x, rows):
                return np.pad(x[rows], ((0, rows_each - len(rows)), (0, 0)))

            given = [
                (rows, PolicyTargets(wide(now, rows), wide(usable[part], rows))) for rows in rows_of
            ]

            def micro_batches() -> Iterator[tuple[GroupBatch, PolicyTargets]]:
                for rows, targets in [pair for pair in given if learner.teaches(pair[1])] or given[
                    :1
                ]:
                    of_rows = [groups[part[i]] for i in rows]
                    batch = to_batch(of_rows)
                    if old is not None:
                        wide_old = np.zeros_like(batch.log_probs[:, :, 1:])
                        for row, i in enumerate(rows):
                            known = old[part[i]][:, : wide_old.shape[-1]]
                            wide_old[row, : len(known), : known.shape[1]] = known
                        targets = targets._replace(old_log_probs=wide_old)
                    if learner.teaches(targets):
                        passes.add(batch, of_rows, reference is not None)
                    yield batch, targets

            done.append(learner.rl_step(micro_batches(), in_loss, reference))
    finite = [u for u in done if not u['skipped_updates']] or done
    means = {
        name: float((np.max if name.endswith('_max') else np.mean)([u[name] for u in finite]))
        for name in (done[0] if done else ())
    }
    skipped = {'skipped_updates': sum(u['skipped_updates'] for u in done)}
    first = {name: done[0][name] for name in ('sampler_gap', 'sampler_gap_max')} if done else {}
    return means | skipped | first, passes


def old_log_probs(
    learner: Learner,
    groups: Sequence[Sequence[Trajectory]],
    trainable: np.ndarray,
    most: int,
    rows_each: int,
    to_batch: Callable[[Sequence[Sequence[Trajectory]]], GroupBatch],
) -> dict[int, Float[np.ndarray, 'g s']]:
    """The learner's log-probs of suffix tokens 1 … S−1 before the first update on a rollout batch.

    Args:
        learner: not updated yet.
        groups: this process's, G trajectories each.
        trainable: indices of the groups that have tokens.
        most: such groups of the process that has most of them; all make as many passes.
        rows_each: groups of a pass.
        to_batch: makes a batch of at most so many groups.

    Returns:
        By index of the group, [G, S−1] with the padding of its pass.
    """
    # Of one length together, as in the passes that train.
    order = sorted(trainable, key=lambda i: max(map(length, groups[i])))
    found = {}
    for start in range(0, most, rows_each):
        rows = order[start : start + rows_each]
        values = learner.local_log_probs(to_batch([groups[i] for i in rows]))
        found |= dict(zip(rows, values, strict=False))
    return found


def minibatch_normalized(
    advantages: Float[np.ndarray, 'b g'], usable: Bool[np.ndarray, 'b g'], part: np.ndarray
) -> Float[np.ndarray, 'n g']:
    """Advantages of one minibatch through the batch layer, over the minibatch of all processes.

    Args:
        advantages: [groups, G] of this process's rollout batch.
        usable: [groups, G], whether a trajectory counts.
        part: indices of the groups in this process's part of the minibatch.

    Returns:
        [len(part), G].
    """
    of_part = np.isin(np.arange(len(usable)), part)[:, None]
    gathered, counted = multihost.allgather(advantages), multihost.allgather(usable & of_part)
    return multihost.local_part(
        np.asarray(batch_normalize(gathered.ravel(), counted.ravel())).reshape(gathered.shape)
    )[part]
