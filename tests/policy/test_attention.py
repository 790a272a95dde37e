"""Every implementation of attention gives what all scores at once give, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from sensesearch_jax.policy import attention, kernels, tiles
from sensesearch_jax.policy.attention import LONG, attend
from sensesearch_jax.policy.context import Context
from sensesearch_jax.runtime.mesh import AXES, make_mesh

B, G, H, K, E = 2, 3, 4, 2, 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles and a torn last one."""
    monkeypatch.setattr(tiles, 'TILE', 16)


def operands(length, seed=0):
    """Own tokens, a context shared by the group and one per member, all with holes."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    holes = lambda *shape: jnp.asarray(random.random(shape) < 0.7)
    pair = lambda lanes, tokens: (normal(B, lanes, tokens, K, E), normal(B, lanes, tokens, K, E))
    contexts = Context.of(*pair(1, 11), holes(B, 1, 11)), Context.of(*pair(G, 5), holes(B, G, 5))
    return normal(B, G, length, H, E), *pair(G, length), holes(B, G, length), contexts


def value_and_gradients(how, queries, keys, values, valid, contexts):
    def loss(queries, keys, values, contexts):
        out = how(queries, keys, values, valid, contexts)
        out = jnp.where(valid[..., None, None], out, 0)  # what padding gives is its own affair
        return (out * jnp.cos(jnp.arange(E))).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True, allow_int=True))(
        queries, keys, values, contexts)
    return [leaf for leaf in jax.tree.leaves((out, gradients)) if leaf.dtype == jnp.float32]


def assert_equal(how, operands, tolerance=1e-5):
    ours, theirs = value_and_gradients(how, *operands), value_and_gradients(attention.attend_at_once, *operands)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize('kept', [(), (0,), (1,), (0, 1)])
def test_by_head_equals_at_once(kept):
    *own, contexts = operands(40)
    assert_equal(attention.attend_by_head, (*own, tuple(contexts[i] for i in kept)))


def test_tiles_of_padding_cost_nothing_and_change_nothing():
    *own, contexts = operands(40)
    short = own[3].at[0, 1, 7:].set(False).at[1, 2].set(False)
    assert_equal(attention.attend_by_head, (*own[:3], short, contexts))


def test_the_kernels_of_accelerators_equal_at_once():
    """The Pallas kernel step by step, and cuDNN's call computed by XLA; a torn last block."""
    *own, contexts = operands(130)
    seen = own[3].at[:, :, 0].set(True)  # so that every query sees a key
    given = *own[:3], seen, contexts
    assert_equal(functools.partial(kernels.attend_splash, interpret=True), given)
    assert_equal(functools.partial(kernels.attend_cudnn, implementation='xla'), given)


def test_the_platform_chooses():
    """By what the mesh's devices are, not by the machine that compiles."""
    assert attention.choose(LONG) is attention.attend_by_head and attention.choose(1) is attention.attend_at_once
    topology = lambda name: AbstractMesh((1,), ('data',), abstract_device=AbstractDevice(name, 1, name))
    for name, expected in (('tpu', kernels.attend_splash), ('gpu', kernels.attend_cudnn)):
        with jax.sharding.use_abstract_mesh(topology(name)):
            assert attention.choose(LONG) is expected


@pytest.mark.parametrize('shape', [(2, 1, 2), (1, 2, 1)])
def test_rows_and_heads_may_be_cut(shape):
    inputs = operands(40)
    with jax.set_mesh(make_mesh(dict(zip(AXES, shape)))):
        found = jax.jit(attend)(*inputs)
    np.testing.assert_allclose(found, jax.jit(attend)(*inputs), atol=2e-6)


@pytest.mark.parametrize('length', [LONG - 1, LONG])
def test_attend_is_the_same_on_both_sides_of_the_threshold(length):
    inputs = operands(length)
    np.testing.assert_allclose(jax.jit(attend)(*inputs), attention.attend_at_once(*inputs), atol=2e-6)


@pytest.mark.parametrize('length', [LONG - 1, LONG])
def test_int8_contexts_are_the_rounded_ones(length):
    """Few queries scale the products, many the keys and values: the same, and near the exact one."""
    queries, keys, values, valid, contexts = operands(length)
    rounded = tuple(context.quantized() for context in contexts)
    for before, after in zip(contexts, rounded):
        assert after.keys.dtype == after.values.dtype == jnp.int8
        for exact, near, axis in ((before.keys, after.plain(jnp.float32).keys, -2),
                                  (before.values, after.plain(jnp.float32).values, -1)):
            largest = jnp.abs(exact).max(axis, keepdims=True)
            assert (jnp.abs(exact - near) <= largest * (0.5 / 127 + 1e-6)).all()
    found = jax.jit(attend)(queries, keys, values, valid, rounded)
    plain = tuple(context.plain(jnp.float32) for context in rounded)
    np.testing.assert_allclose(found, attention.attend_at_once(queries, keys, values, valid, plain), atol=2e-6)
    exact = attention.attend_at_once(queries, keys, values, valid, contexts)
    assert 0 < jnp.abs(found - exact).mean() < 0.01


def test_bfloat16_stays_bfloat16():
    queries, keys, values, valid, _ = operands(40)
    half = [x.astype(jnp.bfloat16) for x in (queries, keys, values)]
    out = attend(*half, valid)
    assert out.dtype == jnp.bfloat16
    sees = np.asarray(valid.cumsum(-1) > 0)
    exact = attention.attend_at_once(queries, keys, values, valid, ())
    np.testing.assert_allclose(np.asarray(out, np.float32)[sees], np.asarray(exact)[sees], atol=0.05)
