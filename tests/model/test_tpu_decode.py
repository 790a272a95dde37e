"""The decode kernel of TPUs: it gives what all scores at once give, and reads what is there."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh

from sensesearch_jax.model.attention import dispatch, tpu_decode, xla
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.runtime.mesh import make_mesh

B, G, H, K, E = 2, 3, 4, 2, 128
PROMPT, SUFFIX = 512, 320  # blocks of 256; the second cache's last one is torn


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tpu_decode, 'BLOCK', 256)


def operands(seed=0, lengths=None):
    """One query of each lane, behind a prompt, a suffix of each lane and a few sampled tokens."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def cache(lanes, tokens, length):
        pair = normal(B, lanes, tokens, K, E), normal(B, lanes, tokens, K, E)
        return KVCache.of(*pair, jnp.arange(tokens) < jnp.asarray(length)[..., None])

    if lengths is None:  # nothing, all, and any
        lengths = random.integers(0, SUFFIX + 1, (B, G))
        lengths[0, 0], lengths[1, 1] = 0, SUFFIX
    caches = (
        cache(1, PROMPT, random.integers(1, PROMPT + 1, (B, 1))),
        cache(G, SUFFIX, lengths),
        cache(G, 16, random.integers(0, 17, (B, G))),
    )
    own = normal(B, G, 1, H, E), normal(B, G, 1, K, E), normal(B, G, 1, K, E)
    return *own, jnp.ones((B, G, 1), bool), caches


interpreted = jax.jit(functools.partial(tpu_decode.attend_one, interpret=True))


@pytest.mark.parametrize('seed', range(3))
def test_the_kernel_equals_at_once(seed):
    given = operands(seed)
    np.testing.assert_allclose(interpreted(*given), xla.attend_at_once(*given), atol=1e-5)


def test_masks_with_holes_are_right_too():
    *own, caches = operands()
    holes = jnp.asarray(np.random.default_rng(0).random(caches[1].valid.shape) < 0.3)
    caches = caches[0], caches[1]._replace(valid=holes), caches[2]
    found = interpreted(*own, caches)
    np.testing.assert_allclose(found, xla.attend_at_once(*own, caches), atol=1e-5)


def test_int8_and_bfloat16():
    *own, caches = operands()
    exact = xla.attend_at_once(*own, caches[1:2])
    rounded = (caches[1].quantized(),)
    found = interpreted(*own, rounded)
    np.testing.assert_allclose(found, xla.attend_at_once(*own, rounded), atol=1e-5)
    half = [x.astype(jnp.bfloat16) for x in own[:3]]
    found = interpreted(*half, own[3], (caches[1].dequantized(jnp.bfloat16),))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=0.03)


def test_blocks_behind_the_end_are_not_read():
    *own, caches = operands(lengths=[[0, 1, 250], [256, 200, 10]])
    expected = xla.attend_at_once(*own, caches)
    behind = jnp.arange(SUFFIX) >= 256
    suffix = caches[1]
    suffix = suffix._replace(
        keys=jnp.where(behind, jnp.nan, suffix.keys),
        values=jnp.where(behind[:, None], jnp.nan, suffix.values),
    )
    found = interpreted(*own, (caches[0], suffix, caches[2]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_each_block_that_holds_tokens_is_fetched_once_and_no_other():
    """One of a head whose cache is empty, and the last head's first one again at the very end."""
    end, heads, block, steps = [0, 700, 256, 1, 512], 2, 256, 4
    at = functools.partial(tpu_decode.fetched_block, end=np.array(end), block=block, heads=heads)
    places = [
        tuple(map(int, at(i, j, count=len(end) * heads)))
        for i, j in itertools.product(range(len(end) * heads), range(steps))
    ]
    fetched = [place for place, _ in itertools.groupby(places)]
    needed = [
        (i, j) for i in range(len(end) * heads) for j in range(max(1, -(-end[i // heads] // block)))
    ]
    assert fetched == [*needed, (9, 0)]


def test_heads_and_rows_may_be_cut(monkeypatch):
    monkeypatch.setattr(dispatch, 'choose', lambda *_: interpreted)
    *own, caches = operands()
    given = *own, caches[1:2]
    with jax.set_mesh(make_mesh({'data': 2, 'tensor': 2})):
        found = jax.jit(dispatch.attend)(*given)
    np.testing.assert_allclose(found, xla.attend_at_once(*given), atol=1e-5)


def test_a_tpu_takes_it_for_one_query_of_wide_heads():
    queries, *_, caches = operands()
    two, narrow = jnp.repeat(queries, 2, 2), queries[..., :64]
    topology = AbstractMesh((1,), ('data',), abstract_device=AbstractDevice('tpu', 1, 'tpu'))
    with jax.sharding.use_abstract_mesh(topology):
        assert dispatch.choose(queries, caches) is tpu_decode.attend_one
        for given in ((two, caches), (narrow, caches), (queries, caches[2:]), (queries, ())):
            assert dispatch.choose(*given) is xla.attend_at_once


@pytest.mark.parametrize('name, quantized', [('v5p:2x2x1', False), ('v6e:2x2', True)])
def test_it_is_compiled_for_tpus(name, quantized, monkeypatch):
    """Of a 7B policy's shapes on one device of four; the cache's last block is torn."""
    pytest.importorskip('libtpu')
    monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
    monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    monkeypatch.setattr(tpu_decode, 'BLOCK', 1024)
    mesh = make_mesh({'tensor': 4}, topologies.get_topology_desc(name, 'tpu').devices)

    def shapes():
        def cache(lanes, tokens):
            pair = (jnp.zeros((4, lanes, tokens, 4, 128), jnp.bfloat16),) * 2
            cache = KVCache.of(*pair, jnp.ones((4, lanes, tokens), bool))
            return cache.quantized() if quantized else cache

        own = (jnp.zeros((4, 8, 1, heads, 128), jnp.bfloat16) for heads in (28, 4, 4))
        valid = jnp.ones((4, 8, 1), bool)
        return *own, valid, (cache(8, 2_112), cache(8, 64))

    with jax.set_mesh(mesh):
        compiled = jax.jit(dispatch.attend).lower(*jax.eval_shape(shapes)).compile()
    assert 'attend_one' in compiled.as_text()
