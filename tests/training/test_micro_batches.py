"""Micro-batches: they add up to one batch, in any number of threads, in memory that does not grow."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_learners import (
    CLOSE,
    MASK,
    OBJECTIVES,
    POLICY,
    assert_same_moves,
    compiled,
    learner_of,
    moved,
    pick,
    pick_targets,
    rl_config,
    targets_for,
    values_of,
)
from small_policies import each_family

from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rl_update import ALGORITHMS
from sensesearch_jax.training.batch_losses import PolicyTargets
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trainer import Learner

family = each_family(
    'qwen2_5_vl',
    pytest.param('qwen3_vl_moe', marks=pytest.mark.slow),
    modules=[__name__, 'small_learners'],
    reset=[compiled],
)


def test_micro_batches_of_sft_add_up():
    batch = batch_of(ROWS)
    whole, parts = learner_of(), learner_of()
    one = whole.sft_step([batch])
    two = parts.sft_step([pick(batch, [0, 3]), pick(batch, [2, 1])])
    assert one == pytest.approx(two, rel=1e-5)
    assert_same_moves(moved(whole), moved(parts))
    assert max(np.abs(step).max() for step in moved(whole).values()) > 1e-3


@pytest.mark.parametrize('algorithm', ['bn_gspo', 'grpo', 'gspo'])
def test_micro_batches_of_rl_add_up(algorithm):
    objective = make_objective(ConfigDict(rl_config() | CLOSE | {'algorithm': algorithm}))
    assert objective.ratio == ALGORITHMS[algorithm].ratio
    whole, parts = learner_of(objective=objective), learner_of(objective=objective)
    batch, targets = targets_for(whole, ROWS, algorithm)

    def select(rows):
        return pick(batch, rows), pick_targets(targets, rows)

    one = whole.rl_step([(batch, targets)])
    two = parts.rl_step([select([1, 2]), select([3, 0])])
    assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    assert one['clip_ratio'] > 0 and one['kl'] > 0
    assert_same_moves(moved(whole), moved(parts))
    assert max(np.abs(step).max() for step in moved(whole).values()) > 1e-4


def test_micro_batches_side_by_side_add_up():
    one, two = (
        learner_of(objective=OBJECTIVES['sequence']),
        learner_of(objective=OBJECTIVES['sequence'], threads=2),
    )
    batch, targets = targets_for(one, ROWS, 'gspo')
    parts = [(pick(batch, [i]), pick_targets(targets, [i])) for i in range(4)]
    assert two.rl_step(parts) == pytest.approx(one.rl_step(parts), rel=1e-6)
    assert_same_moves(moved(one), moved(two))
    assert two.sft_step([b for b, _ in parts]) == pytest.approx(
        one.sft_step([b for b, _ in parts]), rel=1e-6
    )
    assert two._rl.program._cache_size() == two._sft.program._cache_size() == 1


@pytest.mark.parametrize('ratio', ['sequence', pytest.param('token', marks=pytest.mark.slow)])
def test_groups_without_spread_cost_no_pass(ratio):
    """They count in the mean, though: the move is that of a pass over all."""
    objective = dataclasses.replace(OBJECTIVES[ratio], kl_coefficient=0.0)
    whole, parts = learner_of(objective=objective), learner_of(objective=objective)
    batch, targets = targets_for(whole, ROWS, 'gspo')
    advantages = targets.advantages * np.array([1, 0, 1, 1e-7], np.float32)[:, None]
    targets = PolicyTargets(advantages, targets.in_loss, None)
    passes, gradient = [], parts._rl
    parts._rl = lambda *operands: passes.append(1) or gradient(*operands)
    whole.rl_step([(batch, targets)])
    parts.rl_step(
        [
            (pick(batch, [i]), PolicyTargets(advantages[[i]], targets.in_loss[[i]], None))
            for i in range(4)
        ]
    )
    assert len(passes) == 2
    assert_same_moves(moved(whole), moved(parts))
    assert max(np.abs(step).max() for step in moved(whole).values()) > 1e-4


def test_the_kl_term_takes_in_groups_without_spread():
    learner = learner_of(objective=OBJECTIVES['sequence'])
    batch, targets = targets_for(learner, ROWS, 'gspo')
    advantages = targets.advantages * np.array([1, 0, 1, 0], np.float32)[:, None]
    done, gradient = [], learner._rl
    learner._rl = lambda *operands: done.append(1) or gradient(*operands)
    learner.rl_step(
        [
            (
                pick(batch, [i]),
                PolicyTargets(advantages[[i]], targets.in_loss[[i]], targets.ref_log_probs[[i]]),
            )
            for i in range(4)
        ]
    )
    assert len(done) == 4


def rows_of(targets, rows):
    return jax.tree.map(lambda x: x[rows], targets)  # old log-probs may be None


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_a_micro_batch_that_is_not_finite_changes_nothing(kind):
    """Parameters, moments and all that follows are those of a run that never saw it; it is counted."""
    optimizer = make_optimizer(ConfigDict(rl_config() | {'learning_rate': 1e-3, 'warmup': 0}), 10)
    objective = OBJECTIVES['sequence']
    learner, other = (
        Learner(POLICY, optimizer, suppressed=MASK, objective=objective) for _ in range(2)
    )
    batch, targets = targets_for(learner, ROWS, 'gspo')
    parts = [(pick(batch, [i]), rows_of(targets, [i])) for i in range(2)]
    broken = pick(batch, [2])
    broken = broken._replace(features=np.full_like(broken.features, np.nan))

    def step(learner, micro):
        return learner.sft_step([b for b, _ in micro]) if kind == 'sft' else learner.rl_step(micro)

    first, same = step(learner, parts), step(other, parts)
    assert first == same and first['skipped_updates'] == learner.skipped_in_a_row == 0
    assert (
        first['learning_rate'] == pytest.approx(1e-3)
        and first['param_norm'] > 1
        and first['grad_norm'] > 0
    )
    for n in (1, 2):
        values = step(learner, [*parts, (broken, rows_of(targets, [2]))])
        assert (
            values['skipped_updates'] == 1
            and learner.skipped_in_a_row == n
            and learner.updates == 1
        )
        assert not np.isfinite(values['grad_norm'])
    for one, two in zip(
        *(jax.tree.leaves((x.parameters, x.moments)) for x in (learner, other)), strict=True
    ):
        assert np.array_equal(one, two)
    assert (
        step(learner, parts) == step(other, parts)
        and learner.skipped_in_a_row == 0
        and learner.updates == 2
    )


class Trees:
    """Counts the trees of parameters' shape that are alive beyond those before, and the bytes of
    all arrays beyond."""

    def __init__(self, state):
        down = state['language']['layers']['mlp']['down']  # no other parameter has its shape
        self.shape = jax.tree.leaves(down)[0].shape
        gc.collect()  # learners of earlier tests would go while this one counts
        self.before = self.now()

    def now(self):
        live = jax.live_arrays()
        return sum(x.shape == self.shape for x in live), sum(x.nbytes for x in live)

    def more(self):
        return [now - before for now, before in zip(self.now(), self.before)]


def most_alive(threads, count):
    """The most gradients and bytes that are alive while one of so many micro-batches of SFT runs."""
    learner = learner_of(threads=threads)
    one = pick(batch_of(ROWS), [0])
    learner.sft_step([one])  # compiled
    jax.block_until_ready(learner.parameters)
    trees, seen, program = Trees(learner.parameters), [], learner._sft

    def watched(*operands):
        found = program(*operands)
        seen.append(trees.more())
        return found

    learner._sft = watched
    learner.sft_step([one] * count)
    assert len(seen) == count
    return [max(values) for values in zip(*seen)]


@pytest.mark.parametrize('threads', [1, 2])
def test_there_is_one_gradient_for_each_thread_beside_their_sum(threads):
    trees, _ = most_alive(threads, 8)
    assert 2 <= trees <= threads + 1


def test_memory_does_not_grow_with_the_number_of_micro_batches():
    (_, few), (_, many) = most_alive(1, 2), most_alive(1, 8)
    assert many == pytest.approx(few, rel=0.1)


@pytest.mark.parametrize('threads', [1, 2])
def test_micro_batches_are_made_one_ahead(threads):
    learner = learner_of(threads=threads)
    one = pick(batch_of(ROWS), [0])
    run, program, ahead = [], learner._sft, []
    learner._sft = lambda *operands: run.append(1) or program(*operands)

    def batches():
        for made in range(6):
            ahead.append(made - len(run))
            yield one

    values = learner.sft_step(batches(), 6 * one.response_mask.sum())
    assert len(run) == 6 and max(ahead) <= threads - 1
    assert values['loss'] == pytest.approx(learner_of().sft_step([one])['loss'], rel=1e-5)


def test_the_order_of_the_sum_does_not_depend_on_threads():
    """To the last bit: a run is the same on any number of threads."""
    batch = batch_of(ROWS)
    rows = [pick(batch, [i % 4]) for i in range(7)]
    learners = [learner_of(threads=threads) for threads in (1, 2, 3)]
    for learner in learners:
        learner.sft_step(rows)
    first, *others = (values_of(learner.parameters) for learner in learners)
    assert all(np.array_equal(first[name], other[name]) for other in others for name in first)
