"""One head at a time gives what all scores at once give, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sensesearch_jax.policy import attention
from sensesearch_jax.policy.attention import LONG, Context, attend

B, G, H, K, E = 2, 3, 4, 2, 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles and a torn last one."""
    monkeypatch.setattr(attention, 'TILE', 16)


def operands(length, seed=0):
    """Own tokens, a context shared by the group and one per member, all with holes."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    holes = lambda *shape: jnp.asarray(random.random(shape) < 0.7)
    pair = lambda lanes, tokens: (normal(B, lanes, tokens, K, E), normal(B, lanes, tokens, K, E))
    contexts = Context(*pair(1, 11), holes(B, 1, 11)), Context(*pair(G, 5), holes(B, G, 5))
    return normal(B, G, length, H, E), *pair(G, length), holes(B, G, length), contexts


@pytest.mark.parametrize('kept', [(), (0,), (1,), (0, 1)])
def test_by_head_equals_at_once(kept):
    queries, keys, values, valid, contexts = operands(40)
    contexts = tuple(contexts[i] for i in kept)

    def run(how):
        def loss(queries, keys, values, contexts):
            out = how(queries, keys, values, valid, contexts)
            # A query without any key to see gives whatever it gives.
            sees = valid.cumsum(-1) > 0
            out = jnp.where(sees[..., None, None], out, 0)
            return (out * jnp.cos(jnp.arange(E))).sum(), out
        return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True, allow_int=True))(queries, keys, values, contexts)

    ours, theirs = run(attention.attend_by_head), run(attention.attend_at_once)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if one.dtype == jnp.float32:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize('length', [LONG - 1, LONG])
def test_attend_is_the_same_on_both_sides_of_the_threshold(length):
    inputs = operands(length)
    np.testing.assert_allclose(jax.jit(attend)(*inputs), attention.attend_at_once(*inputs), atol=2e-6)


def test_bfloat16_stays_bfloat16():
    queries, keys, values, valid, _ = operands(40)
    half = [x.astype(jnp.bfloat16) for x in (queries, keys, values)]
    out = attend(*half, valid)
    assert out.dtype == jnp.bfloat16
    sees = np.asarray(valid.cumsum(-1) > 0)
    exact = attention.attend_at_once(queries, keys, values, valid, ())
    np.testing.assert_allclose(np.asarray(out, np.float32)[sees], np.asarray(exact)[sees], atol=0.05)
