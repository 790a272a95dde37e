"""SFT and RL steps: what moves and what does not, micro-batches that add up, members that do not
count."""

import copy
import dataclasses
import functools
import gc
import itertools
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_policies import SUPPRESSED, VOCABULARY, quick_compilation, small_policy

from sensesearch_jax.batching.group_batch import Row
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rl_update import ALGORITHMS
from sensesearch_jax.training.advantages import batch_normalize, group_advantages
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trainer import Learner, decoder, inner_decoder, trained_part

rl_config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'common.py'))['rl']
POLICY = small_policy()
MASK = np.isin(np.arange(VOCABULARY), SUPPRESSED)


@pytest.fixture(autouse=True, scope='module')
def quick():
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_compilation(monkeypatch)
        yield


CLOSE = {
    'kl_coefficient': 0.1,
    'clip_low': 0.1,
    'clip_high': 0.1,
}  # so that some ratios are clipped
OBJECTIVES = {
    ratio: make_objective(ConfigDict(rl_config() | CLOSE | {'algorithm': name}))
    for name, (ratio, _) in ALGORITHMS.items()
}


@functools.cache
def compiled(**options):
    return Learner(POLICY, optax.sgd(0.1), suppressed=MASK, **options)


def learner_of(**options):
    """A learner at its start; those with the same options share their programs, but not what they
    learn."""
    learner = copy.copy(compiled(**options))
    learner.parameters = jax.tree.map(jax.numpy.copy, nnx.state(POLICY, decoder))
    learner.moments = learner.optimizer.init(learner.parameters)
    return learner


def values_of(state):
    return {'.'.join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def moved(learner):
    """How far each trained parameter went from where it started."""
    start = values_of(nnx.state(POLICY, decoder))
    return {name: value - start[name] for name, value in values_of(learner.parameters).items()}


def assert_same_moves(one, other, tolerance=1e-5):
    for name, step in one.items():
        # The floor: terms of a key's bias nearly cancel, and what is left of a few of them is
        # rounding.
        allowed = max(tolerance * np.abs(step).max(), 2e-7)
        assert np.abs(step - other[name]).max() <= allowed, name


@pytest.mark.parametrize('freeze_embedding', [False, True])
def test_sft_moves_the_decoder_only(freeze_embedding):
    config = ConfigDict(
        rl_config() | {'learning_rate': 1e-2, 'warmup': 0, 'freeze_embedding': freeze_embedding}
    )
    learner = Learner(
        POLICY, make_optimizer(config, 10), suppressed=MASK, trained=trained_part(config)
    )
    stays = ('vision', 'language.embedding') if freeze_embedding else ('vision',)
    before = values_of(nnx.state(POLICY))
    learner.sft_step([batch_of(ROWS)])
    after = values_of(nnx.state(learner.policy))
    assert after.keys() == before.keys()
    for name, value in after.items():
        same = np.array_equal(value, before[name])
        assert same == name.startswith(stays), name
        assert np.isfinite(value).all()
    # The moments are those of what is trained alone, and the policy that was given keeps its own
    # arrays.
    frozen = sum(v.size for name, v in before.items() if name.startswith(stays))
    trained = sum(v.size for v in before.values()) - frozen
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(learner.moments)) <= 2 * trained + 4
    assert all(
        np.array_equal(value, before[name]) for name, value in values_of(nnx.state(POLICY)).items()
    )
    whole = values_of(learner.all_parameters)
    assert whole.keys() == before.keys() and all(
        np.array_equal(whole[name], after[name]) for name in whole
    )


def test_a_frozen_embedding_is_sampled_with_in_the_type_of_the_loss():
    """As everything else of the decoder: caches have its type, and the sampler's log-probs are the
    trainer's."""
    learner = Learner(
        POLICY, optax.sgd(0.1), suppressed=MASK, dtype=jax.numpy.bfloat16, trained=inner_decoder
    )
    types = {leaf.dtype for leaf in jax.tree.leaves(learner.all_parameters['language'])}
    assert types == {jax.numpy.dtype(jax.numpy.bfloat16)}


def test_sft_loss_is_the_mean_over_response_tokens():
    """Against log-probs of the very tokens, and it falls when a step is repeated."""
    learner = learner_of()
    batch = batch_of(ROWS)
    log_probs = np.asarray(learner.log_probs(batch))
    own = batch.response_mask[:, :, 1:]
    # Vision placeholders have no probability here and are never own.
    assert np.isfinite(log_probs[own]).all() and own.sum() == sum(
        sum(m.response_mask) for r in ROWS for m in r.members
    )
    first = learner.sft_step([batch])
    assert first['loss'] == pytest.approx(-log_probs[own].mean(), rel=1e-5)
    assert 0 < first['entropy'] < np.log(VOCABULARY)
    for _ in range(3):
        last = learner.sft_step([batch])
    assert last['loss'] < first['loss']


def test_the_first_update_is_made_with_a_rate_above_zero():
    """Warm-up begins with its first step, not with nothing; without it the rate is whole at once."""
    gradients = {'kernel': np.ones((1, 2, 2), np.float32)}
    sizes = {}
    for warmup, schedule in itertools.product((0, 4), ('constant', 'cosine')):
        config = ConfigDict(
            rl_config()
            | {'learning_rate': 1.0, 'warmup': warmup, 'schedule': schedule, 'weight_decay': 0.0}
        )
        optimizer = make_optimizer(config, 20)
        state, found = optimizer.init(gradients), []
        for _ in range(20):
            update, state = optimizer.update(gradients, state, gradients)
            found.append(-float(update['kernel'][0, 0, 0]))
        sizes[warmup, schedule] = found
    assert np.allclose(sizes[0, 'constant'], 1, atol=1e-3)
    assert np.allclose(sizes[4, 'constant'][:5], [0.25, 0.5, 0.75, 1, 1], atol=1e-3)
    assert 0.9 < sizes[0, 'cosine'][0] <= 1.001 and np.all(np.diff(sizes[0, 'cosine']) < 0)
    assert 0 < sizes[4, 'cosine'][0] < sizes[4, 'cosine'][3] and sizes[4, 'cosine'][-1] < 0.1
    with pytest.raises(
        ValueError, match="schedule 'linear' is unknown; choose 'constant' or 'cosine'"
    ):
        make_optimizer(ConfigDict(rl_config() | {'schedule': 'linear'}), 1)


def targets_for(learner, rows, algorithm, in_loss=None, seed=3):
    """Advantages as the algorithm makes them; old log-probs near the policy's, so that some ratios
    clip."""
    random = np.random.default_rng(seed)
    batch = batch_of(rows)
    own, near = batch.response_mask[:, :, 1:], np.asarray(learner.log_probs(batch))
    shift = random.normal(0, 0.3, near.shape) + random.normal(0, 0.2, (*near.shape[:2], 1))
    old = np.where(own, near + shift, 0).astype(np.float32)
    batch.log_probs[:, :, 1:] = old
    usable = batch.valid[:, :, 1:].any(-1) if in_loss is None else in_loss
    rewards, ids = (
        random.normal(size=usable.shape).astype(np.float32),
        np.repeat(np.arange(len(rows)), 3),
    )
    advantages = group_advantages(rewards.ravel(), ids, usable.ravel())
    if ALGORITHMS[algorithm][1]:
        advantages = batch_normalize(advantages, usable.ravel())
    reference = np.where(own, near + random.normal(0, 0.2, near.shape), 0).astype(np.float32)
    return batch, PolicyTargets(np.asarray(advantages).reshape(usable.shape), usable, reference)


def pick(batch, rows):
    """Some rows of a batch, as a batch."""
    fields = {name: getattr(batch, name) for name in batch._fields}
    for name, value in fields.items():
        if name == 'packing':
            continue
        if name.endswith('positions'):
            fields[name] = value[:, rows]
        else:
            fields[name] = value[rows]
    return batch._replace(**fields)


def test_micro_batches_of_sft_add_up():
    batch = batch_of(ROWS)
    whole, parts = learner_of(), learner_of()
    one = whole.sft_step([batch])
    two = parts.sft_step([pick(batch, [0, 3]), pick(batch, [2, 1])])
    assert one == pytest.approx(two, rel=1e-5)
    assert_same_moves(moved(whole), moved(parts))
    assert max(np.abs(step).max() for step in moved(whole).values()) > 1e-3


@pytest.mark.parametrize('algorithm', sorted(ALGORITHMS))
def test_micro_batches_of_rl_add_up(algorithm):
    objective = make_objective(ConfigDict(rl_config() | CLOSE | {'algorithm': algorithm}))
    assert objective.ratio == ALGORITHMS[algorithm][0]
    whole, parts = learner_of(objective=objective), learner_of(objective=objective)
    batch, targets = targets_for(whole, ROWS, algorithm)

    def select(rows):
        return (pick(batch, rows), PolicyTargets(*(x[rows] for x in targets)))

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
    parts = [(pick(batch, [i]), PolicyTargets(*(x[[i]] for x in targets))) for i in range(4)]
    assert two.rl_step(parts) == pytest.approx(one.rl_step(parts), rel=1e-6)
    assert_same_moves(moved(one), moved(two))
    assert two.sft_step([b for b, _ in parts]) == pytest.approx(
        one.sft_step([b for b, _ in parts]), rel=1e-6
    )
    assert two._rl.program._cache_size() == two._sft.program._cache_size() == 1


def test_the_mean_of_the_parameters_is_what_is_kept():
    learner = learner_of(objective=OBJECTIVES['sequence'], averaged=True)
    learner.mean = jax.tree.map(jax.numpy.copy, learner.parameters)
    batch, targets = targets_for(learner, ROWS, 'gspo')
    seen = []
    for n in range(1, 4):
        learner.rl_step([(batch, targets)])
        learner.average(1 / n)
        seen.append(values_of(learner.parameters))
    kept = values_of(nnx.state(learner.policy, decoder))
    for name, value in kept.items():
        np.testing.assert_allclose(value, np.mean([s[name] for s in seen], 0), atol=1e-6)
    assert max(np.abs(seen[0][name] - seen[2][name]).max() for name in kept) > 1e-4


@pytest.mark.parametrize('ratio', ['sequence', 'token'])
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


@pytest.mark.parametrize('ratio', ['sequence', 'token'])
def test_a_trajectory_outside_of_the_loss_is_as_if_not_there(ratio):
    """Whatever its advantage and log-probs are: NaN too."""
    objective = OBJECTIVES[ratio]
    with_it, without = learner_of(objective=objective), learner_of(objective=objective)
    in_loss = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], bool)
    batch, targets = targets_for(with_it, ROWS, 'gspo', in_loss)
    dirty = batch._replace(log_probs=np.where(in_loss[..., None], batch.log_probs, np.nan))
    garbage = PolicyTargets(
        np.where(in_loss, targets.advantages, np.nan),
        in_loss,
        np.where(in_loss[..., None], targets.ref_log_probs, np.nan),
    )
    empty = batch._replace(
        **{
            name: np.where(in_loss[..., None], getattr(batch, name), False)
            for name in ('valid', 'response_mask')
        }
    )
    one = with_it.rl_step([(dirty, garbage)])
    two = without.rl_step([(empty, targets._replace(in_loss=np.ones_like(in_loss)))])
    assert one == pytest.approx(two, rel=1e-5)
    assert_same_moves(moved(with_it), moved(without))


def test_the_first_minibatch_has_ratio_one():
    """Old log-probs are the sampler's; where it is the trainer's equal, ratio 1, no clipping, no
    gap."""
    for ratio in ('sequence', 'token'):
        learner = learner_of(objective=OBJECTIVES[ratio])
        batch = batch_of(ROWS)
        batch.log_probs[:, :, 1:] = np.where(
            batch.response_mask[:, :, 1:], learner.log_probs(batch), 0
        )
        random = np.random.default_rng(0)
        targets = PolicyTargets(
            random.normal(size=(4, 3)).astype(np.float32),
            np.ones((4, 3), bool),
            batch.log_probs[:, :, 1:],
        )
        values = learner.rl_step([(batch, targets)])
        assert values['ratio'] == pytest.approx(1, abs=1e-5) and values[
            'ratio_max'
        ] == pytest.approx(1, abs=1e-4)
        assert values['clip_ratio'] == 0 and values['kl'] < 1e-6
        assert values['sampler_gap'] < 1e-5 and values['grad_norm'] > 0
        again = learner.rl_step([(batch, targets)])
        assert again['sampler_gap'] > 1e-4 and again['ratio_max'] > 1


def test_one_member_and_empty_rows():
    """G = 1 is a batch like any other; padding rows and empty members change nothing."""
    rows = [Row(row.prompt, row.images, row.members[:1]) for row in ROWS[:2]]
    tight, padded = learner_of(), learner_of()
    one = tight.sft_step([batch_of(rows, members=1)])
    two = padded.sft_step([batch_of(rows, members=3, batch=4)])
    assert one == pytest.approx(two, rel=1e-5)
    assert_same_moves(moved(tight), moved(padded))


def test_a_minibatch_without_any_trajectory():
    """Nothing to learn from: no gradient, and no NaN; nothing is said of a KL term without a
    reference."""
    learner = learner_of(objective=Objective())
    none = PolicyTargets(np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), None)
    values = learner.rl_step([(pick(batch_of(ROWS), [0, 1]), none)])
    assert values['grad_norm'] == 0 and values['loss'] == 0 and 'kl' not in values
    assert all(np.isfinite(step).all() and not step.any() for step in moved(learner).values())


@pytest.mark.parametrize('name', ['dots', 'attention', 'full'])
def test_remat_changes_nothing_but_memory(name):
    batch = batch_of(ROWS)
    plain, remat = learner_of(), learner_of(remat=name)
    assert plain.sft_step([batch]) == pytest.approx(remat.sft_step([batch]), rel=1e-5)
    assert_same_moves(moved(plain), moved(remat))


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_packed_suffixes_change_nothing_but_size(remat):
    """Loss, statistics and gradients, in batches of several rows of different lengths and empty
    members."""
    learner = learner_of(objective=Objective(kl_coefficient=0.1), remat=remat)
    batch, targets = targets_for(learner, ROWS, 'bn_gspo')
    packed = batch._replace(packing=Packing.of(batch.valid, 8))
    assert (
        packed.packing.index.shape[1] < batch.valid[0].size
        and packed.padded_tokens < batch.padded_tokens
    )
    ours, values = learner.policy_gradient(packed, targets)
    theirs, expected = learner.policy_gradient(batch, targets)
    for name in expected:
        np.testing.assert_allclose(values[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    for (path, one), (_, other) in zip(
        nnx.to_flat_state(ours), nnx.to_flat_state(theirs), strict=True
    ):
        one, other = np.asarray(one[...]), np.asarray(other[...])
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max() + 1e-9, path
    own = batch.response_mask[:, :, 1:]
    assert np.abs(learner.log_probs(packed) - learner.log_probs(batch))[own].max() < 1e-5


def test_half_precision_computes_but_does_not_remember():
    """bfloat16 forward and backward; parameters, moments and the gradient's sums stay float32."""
    config = ConfigDict(rl_config() | {'learning_rate': 1e-4, 'warmup': 0})
    half = Learner(POLICY, make_optimizer(config, 10), suppressed=MASK, dtype=jax.numpy.bfloat16)
    full = Learner(POLICY, make_optimizer(config, 10), suppressed=MASK)
    batch = batch_of(ROWS)
    near, exact = half.sft_step([batch]), full.sft_step([batch])
    assert near['loss'] != exact['loss'] and near['loss'] == pytest.approx(exact['loss'], rel=0.02)
    assert near['grad_norm'] == pytest.approx(exact['grad_norm'], rel=0.05)
    leaves = jax.tree.leaves((half.parameters, half.moments))
    assert {leaf.dtype.name for leaf in leaves} == {'float32', 'int32'}
    # A step too small for bfloat16 is remembered all the same, and the sampler is given what the
    # loss saw.
    assert all(
        np.abs(step).max() > 0 for name, step in moved(half).items() if 'key.bias' not in name
    )
    assert half.all_parameters['language']['embedding'].dtype == jax.numpy.bfloat16

    def program(learner):
        return learner.lower(batch)['gradient'].as_text()

    assert 'bf16' in program(half) and 'bf16' not in program(full)


def test_log_probs_of_a_reference():
    """With other parameters than the learner's, which stay as they are."""
    learner, other = learner_of(), small_policy(seed=4)
    batch = batch_of(ROWS)
    own = batch.response_mask[:, :, 1:]
    mine = np.asarray(learner.log_probs(batch))
    theirs = np.asarray(learner.log_probs(batch, nnx.state(other, decoder)))
    assert np.abs(theirs[own] - mine[own]).max() > 0.1
    assert np.allclose(
        theirs[own],
        np.asarray(Learner(other, optax.sgd(0.1), suppressed=MASK).log_probs(batch))[own],
        atol=1e-5,
    )
    assert np.array_equal(mine, np.asarray(learner.log_probs(batch)), equal_nan=True)


@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_a_micro_batch_that_is_not_finite_changes_nothing(kind):
    """Parameters, moments and all that follows are those of a run that never saw it; it is counted."""
    optimizer = make_optimizer(ConfigDict(rl_config() | {'learning_rate': 1e-3, 'warmup': 0}), 10)
    objective = OBJECTIVES['sequence']
    learner, other = (
        Learner(POLICY, optimizer, suppressed=MASK, objective=objective) for _ in range(2)
    )
    batch, targets = targets_for(learner, ROWS, 'gspo')
    parts = [(pick(batch, [i]), PolicyTargets(*(x[[i]] for x in targets))) for i in range(2)]
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
        values = step(learner, [*parts, (broken, PolicyTargets(*(x[[2]] for x in targets)))])
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
        self.shape = state['language']['layers']['mlp']['down'][
            'kernel'
        ].shape  # no other parameter has it
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
