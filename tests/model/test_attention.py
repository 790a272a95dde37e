"""Every implementation of attention gives what all scores at once give, values and gradients."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from sensesearch_jax.model import vision_tower
from sensesearch_jax.model.attention import (
    cpu_tiled,
    dispatch,
    gpu_cudnn,
    gpu_decode,
    gpu_hopper_decode,
    tpu_splash,
    xla,
)
from sensesearch_jax.model.attention.dispatch import LONG, attend
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.text_decoder import REMAT
from sensesearch_jax.model.vision_tower import attend_all_at_once, attend_all_in_tiles
from sensesearch_jax.runtime.mesh import make_mesh

B, G, H, K, E = 2, 3, 4, 2, 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles and a torn last one."""
    monkeypatch.setattr(cpu_tiled, 'TILE', 16)


def operands(length, seed=0):
    """Own tokens, some behind the real ones, and caches with holes: one shared by the group and
    one per member."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def holes(*shape):
        return jnp.asarray(random.random(shape) < 0.7)

    def pair(lanes, tokens):
        return (normal(B, lanes, tokens, K, E), normal(B, lanes, tokens, K, E))

    caches = KVCache.of(*pair(1, 11), holes(B, 1, 11)), KVCache.of(*pair(G, 5), holes(B, G, 5))
    real = jnp.arange(length) < jnp.asarray(random.integers(1, length + 1, (B, G, 1)))
    return normal(B, G, length, H, E), *pair(G, length), real, caches


def value_and_gradients(how, queries, keys, values, valid, caches):
    def loss(queries, keys, values, caches):
        out = how(queries, keys, values, valid, caches)
        out = jnp.where(valid[..., None, None], out, 0)  # what padding gives is its own affair
        return (out * jnp.cos(jnp.arange(E))).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True, allow_int=True))(
        queries, keys, values, caches
    )
    return [leaf for leaf in jax.tree.leaves((out, gradients)) if leaf.dtype == jnp.float32]


def assert_equal(how, operands, tolerance=1e-5):
    ours, theirs = (
        value_and_gradients(how, *operands),
        value_and_gradients(xla.attend_at_once, *operands),
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=tolerance)


def assert_near(found, expected, valid, tolerance=2e-6):
    """Equal wherever there is a token; what padding gives is its own affair."""

    def real(x):
        return np.asarray(x, np.float32)[np.asarray(valid)]

    np.testing.assert_allclose(real(found), real(expected), atol=tolerance)


def test_masks_of_all_tiles_are_not_kept(monkeypatch):
    """With a loop over layers around it, JAX would compute beforehand and keep what depends on
    nothing learned."""
    monkeypatch.setattr(cpu_tiled, 'TILE', 128)
    members, length, earlier = 4, 512, 1024

    def normal(*shape):
        return jnp.ones(shape, jnp.float32)

    queries, own = normal(1, members, length, H, E), normal(1, members, length, K, E)
    cache = KVCache(
        normal(1, 1, K, E, earlier), normal(1, 1, K, earlier, E), jnp.ones((1, 1, earlier), bool)
    )
    valid = jnp.ones((1, members, length), bool)

    def loss(queries):
        def layer(x, _):
            return (cpu_tiled.attend_by_head(x, own, own, valid, (cache,)), None)

        return jax.lax.scan(layer, queries, None, length=2)[0].sum()

    used = jax.jit(jax.grad(loss)).lower(queries).compile().memory_analysis().temp_size_in_bytes
    # of a query and a key; nine bytes each if they were kept
    pairs = members * H * length * (earlier + length / 2)
    assert used < 2 * pairs


IN_TILES = [dispatch.attend_by_head, dispatch.attend_by_member]


@pytest.mark.parametrize('how', IN_TILES)
@pytest.mark.parametrize('kept', [(), (0,), (1,), (0, 1)])
def test_in_tiles_equals_at_once(kept, how):
    *own, caches = operands(40)
    assert_equal(how, (*own, tuple(caches[i] for i in kept)))


@pytest.mark.parametrize('how', IN_TILES)
def test_tiles_of_padding_cost_nothing_and_change_nothing(how):
    *own, caches = operands(40)
    short = own[3].at[0, 1, 7:].set(False).at[1, 2].set(False)
    assert_equal(how, (*own[:3], short, caches))
    # and no choice between what is computed
    assert ' cond[' in str(jax.make_jaxpr(how)(*own[:3], short, caches))


@pytest.mark.parametrize('gradients', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_float32_on_a_gpu_takes_memory_that_grows_with_the_tokens(gradients, monkeypatch):
    """Of one long prompt; all scores at once grow with their square."""
    monkeypatch.setattr(cpu_tiled, 'TILE', 32)

    def used(tokens):
        def shape(heads):
            return jax.ShapeDtypeStruct((1, 1, tokens, heads, 16), jnp.float32)

        topology = AbstractMesh((1,), ('data',), abstract_device=AbstractDevice('gpu', 1, 'gpu'))
        with jax.sharding.use_abstract_mesh(topology):
            how = dispatch.choose(shape(8), ())

        def loss(*operands):
            return how(*operands, ()).sum()

        program = jax.jit(jax.grad(loss, (0, 1, 2)) if gradients else loss)
        given = shape(8), shape(2), shape(2), jax.ShapeDtypeStruct((1, 1, tokens), bool)
        return program.lower(*given).compile().memory_analysis().temp_size_in_bytes

    assert used(1024) < 3 * used(512)
    assert used(1024) < 8 * 1024 * 1024 * 4 / 3  # of the scores


@pytest.mark.parametrize('kept', [(), (0, 1)])
def test_the_kernels_of_accelerators_equal_at_once(kept):
    """The Pallas kernel step by step, and cuDNN's call computed by XLA; a torn last block."""
    *own, caches = operands(130)
    given = *own, tuple(caches[i] for i in kept)
    assert_equal(functools.partial(tpu_splash.attend_splash, interpret=True), given)
    assert_equal(functools.partial(gpu_cudnn.attend_cudnn, implementation='xla'), given)


@pytest.mark.parametrize(
    'how',
    [
        functools.partial(tpu_splash.attend_all_splash, interpret=True),
        attend_all_in_tiles,
        functools.partial(gpu_cudnn.attend_all_cudnn, implementation='xla'),
    ],
)
def test_all_ways_to_attend_to_a_whole_picture_are_equal(how):
    """Padding stands between the patches, as windows leave it."""
    random = np.random.default_rng(0)
    q, k, v = jnp.asarray(random.normal(size=(3, 2, 192, H, E)), jnp.float32)
    valid = jnp.asarray(random.random((2, 192)) < 0.7)
    np.testing.assert_allclose(how(q, k, v, valid), attend_all_at_once(q, k, v, valid), atol=2e-6)


def test_gradients_of_tiles_equal_those_at_once():
    random = np.random.default_rng(0)
    qkv = jnp.asarray(random.normal(size=(3, 2, 192, H, E)), jnp.float32)
    valid = jnp.asarray(random.random((2, 192)) < 0.7)
    found, wanted = (
        jax.grad(lambda qkv: jnp.sum(how(*qkv, valid) ** 2))(qkv)
        for how in (attend_all_in_tiles, attend_all_at_once)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize('shape', [(2, 1, 2), (1, 1, 1)])
def test_a_large_picture_is_attended_to_in_pieces(shape, monkeypatch):
    monkeypatch.setattr(vision_tower, 'TILE', 64)
    random = np.random.default_rng(0)
    q, k, v = jnp.asarray(random.normal(size=(3, 2, 192, H, E)), jnp.float32)
    valid = jnp.asarray(random.random((2, 192)) < 0.7)
    with jax.set_mesh(
        make_mesh(dict(zip(('data', 'fsdp', 'tensor'), shape)), jax.devices()[: math.prod(shape)])
    ):
        found = jax.jit(vision_tower.attend_all)(q, k, v, valid)
    np.testing.assert_allclose(found, attend_all_at_once(q, k, v, valid), atol=2e-6)


@pytest.mark.parametrize('name, times', [('full', 2), ('attention', 1), ('dots', 1)])
def test_remat_may_keep_attention_from_running_twice(name, times):
    """Only the forward pass of the softmax looks for a largest score."""
    queries, keys, values, valid, _ = operands(40)

    def loss(queries):
        again = jax.checkpoint(
            lambda q: dispatch.attend_by_head(jnp.sin(q), keys, values, valid, ()),
            policy=REMAT[name],
        )
        return (again(queries) ** 2).sum()

    assert str(jax.make_jaxpr(jax.grad(loss))(queries)).count('reduce_max') == times * len(
        list(cpu_tiled._tiles(jnp.zeros((1, 40, 1)), jnp.zeros((40, 1))))
    )


def few(queries, seed=0):
    """A few queries behind caches of several blocks, the last of them torn; heads as wide as the
    kernel wants."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def holes(*shape):
        return jnp.asarray(random.random(shape) < 0.7)

    def pair(lanes, tokens):
        return (normal(B, lanes, tokens, K, 16), normal(B, lanes, tokens, K, 16))

    ends = jnp.arange(288) < jnp.asarray([[[250]], [[40]]])
    caches = (
        KVCache.of(*pair(1, 288), ends),
        KVCache.of(*pair(G, 48), holes(B, G, 48)),
        KVCache.of(*pair(G, 16), jnp.zeros((B, G, 16), bool)),
    )
    valid = jnp.arange(queries) < jnp.asarray(random.integers(1, queries + 1, (B, G, 1)))
    return normal(B, G, queries, H, 16), *pair(G, queries), valid, caches


@pytest.mark.parametrize('queries', [1, 3])
@pytest.mark.parametrize('quantized', [False, True])
def test_the_decode_kernel_equals_at_once(queries, quantized, monkeypatch):
    """Step by step; several pieces of a cache, some of them empty, several rows of queries, and a
    cache of nothing."""
    monkeypatch.setattr(gpu_decode, 'BLOCK', 32)
    *own, caches = few(queries)
    if quantized:
        caches = tuple(cache.quantized() for cache in caches)
    for rows in ((16, 32, 64), (16,)):
        monkeypatch.setattr(gpu_decode, 'ROWS', rows)
        found = gpu_decode.attend_few(*own, caches, interpret=True)
        assert_near(found, xla.attend_at_once(*own, caches), own[3])


def hopper_operands(queries):
    """Of heads and caches as Hopper's kernel takes them: a shared cache with an end of its own in each
    row, one of each member with holes, and one of nothing."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.bfloat16)

    def cache(lanes, tokens, valid):
        valid = jnp.broadcast_to(valid, (B, lanes, tokens))
        return KVCache.of(normal(B, lanes, tokens, K, 64), normal(B, lanes, tokens, K, 64), valid)

    ends = jnp.arange(256) < jnp.asarray([[[250]], [[40]]])
    holes = jnp.asarray(random.random((B, G, 64)) < 0.7)
    caches = cache(1, 256, ends), cache(G, 64, holes), cache(G, 64, False)
    own = normal(B, G, queries, K, 64), normal(B, G, queries, K, 64)
    valid = jnp.arange(queries) < jnp.asarray(random.integers(1, queries + 1, (B, G, 1)))
    return normal(B, G, queries, H, 64), *own, valid, caches


@pytest.mark.parametrize('queries, programs', [(1, 128), (1, 8), (17, 8)])
def test_hoppers_decode_kernel_equals_at_once(queries, programs, monkeypatch):
    """Interpreted, and on a card where there is one; a block of a split and several, and more queries
    than one product has."""
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    monkeypatch.setattr(gpu_hopper_decode, 'PROGRAMS', programs)
    interpret = None if gpu_hopper_decode.on_hopper() else InterpretGPUParams()
    operands = hopper_operands(queries)
    assert gpu_hopper_decode.takes(operands[0], operands[-1])
    found = gpu_hopper_decode.attend_few(*operands, interpret=interpret)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype != bool else x, operands)
    valid = operands[3]
    error = jnp.abs(found.astype(jnp.float32) - xla.attend_at_once(*exact))[valid]
    # A bfloat16 has 8 bits: weights are rounded once, and so is the result.
    assert error.max() < 2**-7 and error.mean() < 2**-10


def test_hoppers_decode_kernel_lowers_for_the_7b_policy():
    """As far as a program can be compiled without a card: layouts and shared memory are resolved."""
    queries, key = (jnp.zeros((8, 8, 1, heads, 128), jnp.bfloat16) for heads in (28, 4))

    def cache(lanes, tokens):
        part = jnp.zeros((8, lanes, tokens, 4, 128), jnp.bfloat16)
        return KVCache.of(part, part, jnp.ones((8, lanes, tokens), bool))

    operands = queries, key, key, jnp.ones((8, 8, 1), bool), (cache(1, 1024), cache(8, 384))
    traced = jax.jit(gpu_hopper_decode.attend_few).trace(*operands)
    assert 'mosaic_gpu' in traced.lower(lowering_platforms=('cuda',)).as_text()


def test_without_triton_hopper_has_a_kernel_of_its_own(monkeypatch):
    """In a jax to come. Another GPU, and shapes that the kernel does not take, have all scores at once."""
    queries, *_, caches = hopper_operands(1)
    narrow, rounded = queries[..., :32], tuple(cache.quantized() for cache in caches)
    monkeypatch.setitem(sys.modules, gpu_decode.__name__, None)
    monkeypatch.delattr('sensesearch_jax.model.attention.gpu_decode')
    abstract = AbstractMesh(
        (1,), ('data',), abstract_device=AbstractDevice('NVIDIA H200', 1, 'gpu')
    )
    with jax.sharding.use_abstract_mesh(abstract):
        assert dispatch.choose(queries, caches) is xla.attend_at_once
        monkeypatch.setattr(gpu_hopper_decode, 'on_hopper', lambda: True)
        assert dispatch.choose(queries, caches) is gpu_hopper_decode.attend_few
        assert dispatch.choose(queries, rounded) is xla.attend_at_once
        assert dispatch.choose(narrow, caches) is xla.attend_at_once


def test_the_platform_chooses():
    """By what the mesh's devices are, not by the machine that compiles."""
    *own, caches = few(LONG)
    exact, many, cache = own[0], own[0].astype(jnp.bfloat16), caches[:1]
    exact_one, one = exact[:, :, :1], many[:, :, :1]
    narrow, torn = one[..., :12], (cache[0]._replace(keys=cache[0].keys[..., :25]),)
    choose, at_once = dispatch.choose, xla.attend_at_once
    assert choose(many, cache) is dispatch.attend_by_head and choose(one, cache) is at_once

    def topology(name):
        return AbstractMesh((1,), ('data',), abstract_device=AbstractDevice(name, 1, name))

    with jax.sharding.use_abstract_mesh(topology('tpu')):
        assert choose(many, cache) is tpu_splash.attend_splash and choose(one, cache) is at_once
    with jax.sharding.use_abstract_mesh(topology('gpu')):
        assert (
            choose(many, cache) is gpu_cudnn.attend_cudnn
            and choose(one, cache) is gpu_decode.attend_few
        )
        # cuDNN takes no float32; the kernel no heads and caches whose sizes are no powers of two.
        assert choose(exact, cache) is dispatch.attend_by_member
        assert choose(narrow, cache) is choose(one, torn) is choose(exact_one, cache) is at_once


@pytest.mark.parametrize('shape', [(2, 1, 2), (1, 2, 1), (1, 1, 2, 4)])
def test_rows_heads_and_tokens_may_be_cut(shape):
    inputs = operands(40)
    with jax.set_mesh(make_mesh(dict(zip(('data', 'fsdp', 'tensor', 'sequence'), shape)))):
        found = jax.jit(attend)(*inputs)
    assert_near(found, jax.jit(attend)(*inputs), inputs[3])
    assert found.addressable_shards[0].data.size * math.prod(shape) == found.size


@pytest.mark.parametrize('length', [LONG - 1, LONG])
def test_attend_is_the_same_on_both_sides_of_the_threshold(length):
    inputs = operands(length)
    assert_near(jax.jit(attend)(*inputs), xla.attend_at_once(*inputs), inputs[3])


@pytest.mark.parametrize('length', [LONG - 1, LONG])
def test_int8_caches_are_the_rounded_ones(length):
    """Few queries scale the products, many the keys and values: the same, and near the exact one."""
    queries, keys, values, valid, caches = operands(length)
    rounded = tuple(cache.quantized() for cache in caches)
    for before, after in zip(caches, rounded):
        assert after.keys.dtype == after.values.dtype == jnp.int8
        for exact, near, axis in (
            (before.keys, after.dequantized(jnp.float32).keys, -2),
            (before.values, after.dequantized(jnp.float32).values, -1),
        ):
            largest = jnp.abs(exact).max(axis, keepdims=True)
            assert (jnp.abs(exact - near) <= largest * (0.5 / 127 + 1e-6)).all()
    found = jax.jit(attend)(queries, keys, values, valid, rounded)
    plain = tuple(cache.dequantized(jnp.float32) for cache in rounded)
    assert_near(found, xla.attend_at_once(queries, keys, values, valid, plain), valid)
    exact = xla.attend_at_once(queries, keys, values, valid, caches)
    assert 0 < jnp.abs(found - exact)[valid].mean() < 0.01


WAYS = {
    'by head': cpu_tiled.attend_by_head,
    'by member': cpu_tiled.attend_by_member,
    'splash': functools.partial(tpu_splash.attend_splash, interpret=True),
    'cuDNN': functools.partial(gpu_cudnn.attend_cudnn, implementation='xla'),
    'at once': xla.attend_at_once,
    'decode kernel': functools.partial(gpu_decode.attend_few, interpret=True),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('own, earlier', [('bfloat16', 'float32'), ('float32', 'bfloat16')])
def test_caches_may_be_of_another_dtype(way, own, earlier, monkeypatch):
    """Whatever computes it, the result is of the queries' dtype, and that of caches which have it
    too."""
    monkeypatch.setattr(dispatch, 'choose', lambda *_: WAYS[way])
    queries, keys, values, valid, caches = few(1 if way == 'decode kernel' else LONG)
    given = [x.astype(own) for x in (queries, keys, values)]

    def cast(dtype):
        return tuple(cache.dequantized(dtype) for cache in caches)

    attended = jax.jit(attend)
    found = attended(*given, valid, cast(earlier))
    assert found.dtype == own
    assert_near(
        found,
        attended(*given, valid, tuple(c.dequantized(own) for c in cast(earlier))),
        valid,
        0.05 if own == 'bfloat16' else 1e-5,
    )


def test_bfloat16_stays_bfloat16():
    queries, keys, values, valid, _ = operands(40)
    half = [x.astype(jnp.bfloat16) for x in (queries, keys, values)]
    out = attend(*half, valid)
    assert out.dtype == jnp.bfloat16
    assert_near(out, xla.attend_at_once(queries, keys, values, valid, ()), valid, 0.05)
