"""Steps on meshes of eight devices equal those on one, and checkpoints go from one mesh to another."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_batches import ROWS, batch_of
from small_policies import SUPPRESSED, VOCABULARY, each_family, small_policy

from sensesearch_jax.model.hf_checkpoint import abstract_policy
from sensesearch_jax.recipes.resume import resume, training_state
from sensesearch_jax.runtime.mesh import RULES, make_mesh
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.checkpointing import Checkpoints, Kept
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trainer import Learner

POLICY = small_policy()
RATE = 1e-3


def learner_on(shape, policy=None, **options):
    config = ConfigDict(
        dict(
            schedule='constant',
            learning_rate=RATE,
            warmup=0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            clip_norm=1e3,
        )
    )
    mesh = make_mesh(dict(zip(('data', 'fsdp', 'tensor', 'expert', 'sequence'), shape)))
    mask = np.isin(np.arange(VOCABULARY), SUPPRESSED)
    return Learner(
        policy or POLICY,
        make_optimizer(config, 1),
        suppressed=mask,
        mesh=mesh,
        objective=Objective(kl_coefficient=0.1),
        **options,
    )


def flat(state):
    return {'.'.join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def rl_batch(**options):
    """Eight rows, of which four are empty, with targets."""
    random = np.random.default_rng(3)
    batch = batch_of(ROWS, batch=8, **options)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    targets = PolicyTargets(
        normal(*batch.valid.shape[:2]),
        batch.valid[:, :, 1:].any(-1),
        normal(*batch.tokens[:, :, 1:].shape) - 4,
    )
    return batch, targets


# Three members, which no sequence axis divides: each of their suffixes is cut. Four are divided.
KINDS = {'rl': {}, 'rl of four': {'members': 4}, 'packed rl': {'members': 4, 'pack_step': 64}}


def take_step(learner, kind):
    """One step: its metrics, its gradients (the first moment of the first step) and the parameters
    after it."""
    if kind == 'sft':
        values = learner.sft_step([batch_of(ROWS, batch=8)])
    else:
        values = learner.rl_step([rl_batch(**KINDS[kind])])
    moment = flat(optax.tree_utils.tree_get(learner.moments, 'mu'))
    return values, {name: value / 0.1 for name, value in moment.items()}, flat(learner.parameters)


@functools.cache
def alone(kind):
    return take_step(learner_on((1, 1, 1)), kind)


family = each_family('qwen2_5_vl', 'qwen3_vl_moe', modules=[__name__], reset=[alone])


def assert_same_step(shape, kind):
    learner = learner_on(shape)
    ours, theirs = take_step(learner, kind), alone(kind)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-5)
    for name, gradient in ours[1].items():
        largest = np.abs(theirs[1][name]).max()
        np.testing.assert_allclose(
            gradient, theirs[1][name], rtol=0, atol=1e-5 * largest, err_msg=name
        )
        # Adam's first step is the gradient's sign, which says nothing where the gradient is noise.
        clear = np.abs(theirs[1][name]) > 1e-3 * largest
        moves = np.abs(ours[2][name] - theirs[2][name])
        assert moves[clear].max(initial=0) < 1e-5 and moves.max() <= 2.1 * RATE, name


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'family', ['qwen2_5_vl', pytest.param('qwen3_vl_moe', marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize(
    ('shape', 'kind'), [((8, 1, 1), 'sft'), slow((1, 4, 2), 'sft'), ((2, 2, 2), 'rl')]
)
def test_a_step_is_the_same_on_every_mesh(shape, kind):
    assert_same_step(shape, kind)


@pytest.mark.parametrize(
    'family', [pytest.param('qwen2_5_vl', marks=pytest.mark.slow), 'qwen3_vl_moe'], indirect=True
)
@pytest.mark.parametrize(('shape', 'kind'), [slow((1, 2, 1, 4), 'sft'), ((1, 2, 2, 2), 'rl')])
def test_a_step_is_the_same_on_a_mesh_of_experts(shape, kind):
    assert_same_step(shape, kind)


@pytest.mark.parametrize(
    ('family', 'shape', 'kind'),
    [
        ('qwen2_5_vl', (1, 2, 1, 1, 4), 'sft'),
        ('qwen2_5_vl', (1, 2, 2, 1, 2), 'packed rl'),
        slow('qwen2_5_vl', (1, 1, 1, 1, 2), 'rl'),
        slow('qwen2_5_vl', (1, 1, 2, 1, 4), 'rl of four'),
        ('qwen3_vl_moe', (1, 1, 1, 2, 2), 'rl'),
        slow('qwen3_vl_moe', (1, 2, 1, 1, 4), 'sft'),
        slow('qwen3_vl_moe', (1, 1, 2, 1, 2), 'packed rl'),
    ],
    indirect=['family'],
)
def test_a_step_is_the_same_on_a_mesh_that_cuts_rows(family, shape, kind):
    assert_same_step(shape, kind)


def test_everything_is_cut_as_the_table_says():
    learner = learner_on((1, 2, 2, 2))
    kernel = learner.parameters['language']['layers']['query']['kernel'][...]
    assert kernel.addressable_shards[0].data.shape == (
        kernel.shape[0],
        kernel.shape[1] // 2,
        kernel.shape[2] // 2,
    )
    for state in (learner.parameters, optax.tree_utils.tree_get(learner.moments, 'nu')):
        for path, parameter in nnx.to_flat_state(state):
            cut = [axis for axis in parameter.axes if RULES[axis]]
            pieces = len({str(shard.index) for shard in parameter[...].addressable_shards})
            assert pieces == 2 ** len(cut), path
    # Every axis name that a parameter has stands in the table, the frozen ones too.
    names = {
        axis
        for _, parameter in nnx.to_flat_state(nnx.state(POLICY, nnx.Param))
        for axis in parameter.axes
    }
    assert names <= RULES.keys() and 'rows' in RULES


@pytest.mark.parametrize('shape', [(1, 2, 2, 1, 2), (1, 1, 1)])
def test_a_checkpoint_goes_on_on_another_mesh(shape, tmp_path):
    first, second = learner_on((2, 2, 2)), learner_on(shape)
    first.parameters = jax.tree.map(lambda x: x + 1, first.parameters)
    with Checkpoints(tmp_path, Kept(last=1, every=0, best=0)) as checkpoints:
        checkpoints.save(3, training_state(first))
        assert resume(second, checkpoints) == 3
    places = jax.tree.map(lambda x: x.sharding, learner_on(shape).parameters)
    assert jax.tree.map(lambda x: x.sharding, second.parameters) == places
    found, saved = flat(second.parameters), flat(first.parameters)
    assert all(np.array_equal(value, saved[name]) for name, value in found.items())


def test_a_step_can_be_compiled_without_any_numbers():
    """From shapes alone, as for a machine that is not here: the memory that is told is that of the
    true step."""

    def shapes(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    learner = learner_on(
        (1, 4, 2), policy=abstract_policy(POLICY.sizes), remat='full', dtype='bfloat16'
    )
    programs = learner.lower(shapes(batch_of(ROWS)))
    assert programs.keys() == {'gradient', 'update'}
    memory = programs['update'].compile().memory_analysis()
    # Parameters and two moments, in eighths where all axes are cut.
    trained = sum(leaf.size for leaf in jax.tree.leaves(learner.parameters))
    assert 3 * 4 * trained / 8 < memory.output_size_in_bytes < 3 * 4 * trained / 4


def test_what_does_not_fit_is_refused_with_a_sentence():
    with pytest.raises(
        ValueError,
        match=r'4 rows in a micro-batch cannot be cut over data × fsdp × expert = 8 devices',
    ):
        learner_on((8, 1, 1)).sft_step([batch_of(ROWS)])
    with pytest.raises(ValueError, match='tensor axis of 8 does not divide 2 key/value heads'):
        learner_on((1, 1, 8)).sft_step([batch_of(ROWS)])
    with pytest.raises(
        ValueError, match=r'fsdp 3 × expert 1 × sequence 1 × tensor 1 does not fit 8 devices'
    ):
        make_mesh({'fsdp': 3})
    with pytest.raises(ValueError, match='mesh.model is no axis'):
        make_mesh({'model': 2})
    with pytest.raises(ValueError, match='at most one is -1'):
        make_mesh({'data': -1, 'fsdp': -1})
    assert make_mesh({'fsdp': -1, 'tensor': 2}).shape == {
        'data': 1,
        'fsdp': 4,
        'expert': 1,
        'sequence': 1,
        'tensor': 2,
    }
    assert make_mesh({'data': 2}).size == 2
    with pytest.raises(ValueError, match="remat 'some' is unknown; choose from none"):
        learner_on((1, 1, 1), remat='some')
