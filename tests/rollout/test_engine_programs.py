"""Compiled programs of the engine: their dtypes, their shapes, and that nothing compiles again."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_engine import POLICY, gap_to_trainer, make_engine, play
from small_policies import STOP, SUPPRESSED, each_family

from sensesearch_jax.model.attention import dispatch
from sensesearch_jax.rollout import engine as engine_module
from sensesearch_jax.rollout.engine import Engine

family = each_family(
    'qwen2_5_vl',
    pytest.param('qwen3_vl', marks=pytest.mark.slow),
    modules=[__name__, 'small_engine'],
    reset=[make_engine],
)


@pytest.mark.parametrize('cache_dtype', ['policy', pytest.param('int8', marks=pytest.mark.slow)])
def test_everything_follows_the_dtype_of_the_parameters(monkeypatch, cache_dtype):
    """Of an engine and its twin, by either way through dispatch, when weights of another dtype come
    and go again."""
    monkeypatch.setattr(dispatch, 'LONG', 4)  # a response's pass is long, a token's is not
    engine = make_engine.__wrapped__(temperature=1.0, cache_dtype=cache_dtype)
    exact, half = (
        engine.parameters,
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), engine.parameters),
    )
    before = play(engine)
    for one in (engine, engine.twin()):
        one.set_parameters(half)
        driver = play(one)
        kept = one.caches.prefix.keys, one.caches.suffix.values
        assert {x.dtype for x in kept} == {
            jnp.dtype('int8' if cache_dtype == 'int8' else 'bfloat16')
        }
        assert gap_to_trainer(driver, 1.0, jnp.bfloat16).mean() < 0.03
    compiled = engine.compiles
    engine.set_parameters(jax.tree.map(lambda x: x + x, half))
    play(engine)
    assert engine.compiles == compiled
    engine.set_parameters(exact)
    assert [s['tokens'] for s in play(engine).everything()] == [
        s['tokens'] for s in before.everything()
    ]


def test_what_is_warmed_up_is_of_the_dtype_that_samples():
    engine = make_engine.__wrapped__(temperature=1.0)
    engine.set_parameters(jax.tree.map(lambda x: x.astype(jnp.bfloat16), engine.parameters))
    engine.warm_up()

    def compiled():
        return [f.program._cache_size() for f in (engine._extend, engine._decode)]

    before = compiled()
    play(engine)
    assert compiled() == before and engine.caches.suffix.keys.dtype == jnp.bfloat16


def test_an_engine_of_shapes_lowers_in_their_dtype():
    """Nothing of a large one is in float32 but what is said to be: the draw and the rotation."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    graph, state = nnx.split(POLICY)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=place), state
    )
    engine = Engine(
        nnx.merge(graph, shapes),
        groups=2,
        members=2,
        prompt_capacity=40,
        suffix_capacity=160,
        chunk=4,
        stop=(STOP,),
        suppressed=SUPPRESSED,
    )
    operands = jax.tree.leaves([program.in_avals for program in engine.lower(32, 164).values()])
    assert {x.dtype for x in operands if jnp.issubdtype(x.dtype, jnp.floating)} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_nothing_compiles_after_warm_up():
    # other tests may have warmed it up, which only makes this harder
    engine = make_engine(temperature=1.0)
    play(engine)
    warm = engine.compiles
    assert warm > 0
    play(engine, seed=4)
    before = engine.parameters
    engine.set_parameters(jax.tree.map(lambda x: x * 1.01, before))
    play(engine, seed=5)
    assert engine.compiles == warm
    engine.set_parameters(before)


def test_warm_up_compiles_every_size_of_extend_and_decode(monkeypatch):
    monkeypatch.setattr(engine_module, 'CACHE_STEP', 48)
    engine = make_engine.__wrapped__(temperature=1.0)
    engine.warm_up()

    def compiled():
        return [f.program._cache_size() for f in (engine._extend, engine._decode)]

    sizes, before = {engine._used(n) for n in range(1, 165)}, compiled()
    assert len(sizes) > 3 and max(sizes) == 164
    assert before == [len(sizes), 3 * len(sizes)]  # all lanes, half of them, few
    found = play(engine)
    assert compiled() == before
    wanted = play(make_engine(temperature=1.0))
    assert [s['tokens'] for s in found.everything()] == [s['tokens'] for s in wanted.everything()]
