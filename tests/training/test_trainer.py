"""SFT and RL steps: what moves and what does not, members that do not count, precision and remat."""

import itertools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_learners import (
    MASK,
    OBJECTIVES,
    POLICY,
    assert_same_moves,
    compiled,
    learner_of,
    moved,
    pick,
    policy_gradient,
    rl_config,
    targets_for,
    values_of,
)
from small_policies import VOCABULARY, each_family, small_policy

from sensesearch_jax.batching.group_batch import Row
from sensesearch_jax.batching.packing import Packing
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trained_part import decoder, inner_decoder, trained_part
from sensesearch_jax.training.trainer import Learner

family = each_family(
    'qwen2_5_vl',
    pytest.param('qwen3_vl_moe', marks=pytest.mark.slow),
    modules=[__name__, 'small_learners'],
    reset=[compiled],
)


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


@pytest.mark.parametrize(
    'name', [pytest.param('dots', marks=pytest.mark.slow), 'attention', 'full']
)
def test_remat_changes_nothing_but_memory(name):
    batch = batch_of(ROWS)
    plain, remat = learner_of(), learner_of(remat=name)
    assert plain.sft_step([batch]) == pytest.approx(remat.sft_step([batch]), rel=1e-5)
    assert_same_moves(moved(plain), moved(remat))


@pytest.mark.parametrize(
    'family', ['qwen2_5_vl', pytest.param('qwen3_vl_moe', marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize('remat', [pytest.param('none', marks=pytest.mark.slow), 'full'])
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
    ours, values = policy_gradient(learner, packed, targets)
    theirs, expected = policy_gradient(learner, batch, targets)
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
