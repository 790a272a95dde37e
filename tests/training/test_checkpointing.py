"""Checkpoints: any pytree comes back as it was, mismatches are refused, a kill loses nothing
complete."""

import random
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sensesearch_jax.training.checkpointing import Checkpoints, Kept

TWO = Kept(last=2, every=0, best=0)


class Pair(NamedTuple):
    a: jax.Array
    b: list


def tree(value: float = 1.0):
    return {
        'params': {'w': jnp.full((3, 4), value), 'half': jnp.full(5, value, jnp.bfloat16)},
        'pair': Pair(jnp.arange(3), [np.arange(4, dtype=np.int32), jnp.zeros(())]),
        'nothing': None,
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_and_keep(tmp_path):
    with Checkpoints(tmp_path, TWO) as checkpoints:
        assert checkpoints.restore(tree()) is None and checkpoints.latest_step() is None
        for step in (1, 5, 7):
            checkpoints.save(step, tree(float(step)))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 7]
    abstract = jax.eval_shape(tree)
    with Checkpoints(tmp_path, TWO) as checkpoints:
        newest = checkpoints.restore(abstract)
        older = checkpoints.restore(tree(0.0), step=5)
    assert newest.step == 7
    assert_same(newest.arrays, tree(7.0))
    assert older.step == 5
    assert_same(older.arrays, tree(5.0))


def test_the_best_outlives_the_newest(tmp_path):
    """A score comes after its step is saved, and again where the directory is opened again."""
    scores = {1: 0.2, 2: 0.5, 3: 0.1, 4: 0.5, 5: 0.3}
    # the first is the best, until the second has its score
    kept_best = Kept(last=1, every=0, best=1)
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 4], 5: [4, 5], 6: [4, 6]}
    with Checkpoints(tmp_path, kept_best) as checkpoints:
        for step in kept:
            checkpoints.save(step, {'w': np.full(2, float(step))})
            checkpoints.wait()
            assert checkpoints.steps() == kept[step]
            if step in scores:
                checkpoints.score(step, scores[step])
        assert checkpoints.best_step() == 4
    with Checkpoints(tmp_path, kept_best) as checkpoints:
        assert checkpoints.best_step() is None
        checkpoints.score(4, 0.5)
        checkpoints.save(7, {'w': np.zeros(2)})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 7] and checkpoints.best_step() == 4


def test_the_last_and_every_third_are_kept(tmp_path):
    with Checkpoints(tmp_path, Kept(last=2, every=3, best=0)) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, {'w': jnp.full(3, step)})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 6, 7, 8]
        assert checkpoints.restore({'w': jnp.zeros(3, int)}, step=6).arrays['w'][0] == 6


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """Training goes on while it is written, into the very buffers and arrays."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    arrays = {'jax': jnp.zeros(1_000_000), 'numpy': np.zeros(1_000_000, np.float32)}
    with Checkpoints(tmp_path, TWO) as checkpoints:
        checkpoints.save(1, arrays)
        arrays['numpy'][:] = 9
        for _ in range(3):
            arrays['jax'] = step(arrays['jax'])
        restored = checkpoints.restore(arrays).arrays
    assert not any(x.any() for x in jax.tree.leaves(restored))


def test_module_and_optimizer_state(tmp_path):
    optimizer = optax.adamw(1e-3)

    def state():
        params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
        return {'params': params, 'optimizer': optimizer.init(params)}

    saved = jax.tree.map(lambda x: x + 1, state())
    with Checkpoints(tmp_path, TWO) as checkpoints:
        checkpoints.save(0, saved)
        restored = checkpoints.restore(jax.eval_shape(state))
    assert_same(restored.arrays, saved)
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(1))
    nnx.update(module, restored.arrays['params'])
    np.testing.assert_array_equal(module.kernel[...], saved['params']['kernel'][...])


@pytest.mark.parametrize(
    'target, sentence',
    [
        (
            {'w': np.zeros((3, 4), np.float32), 'b': np.zeros(3, np.float32)},
            r'b is float32\[2\] there and float32\[3\]',
        ),
        (
            {'w': np.zeros((3, 4), np.float16), 'b': np.zeros(2, np.float32)},
            'w is float32.* there and float16',
        ),
        ({'w': np.zeros((3, 4), np.float32)}, r'b is float32\[2\] there and not there here'),
    ],
)
def test_another_shape_is_refused(tmp_path, target, sentence):
    with Checkpoints(tmp_path, TWO) as checkpoints:
        checkpoints.save(1, {'w': jnp.ones((3, 4)), 'b': jnp.ones(2)})
        with pytest.raises(ValueError, match=f'does not fit this program: {sentence}'):
            checkpoints.restore(target)


def test_mistakes_are_refused_with_a_sentence(tmp_path):
    for kept in (Kept(0, 0, 0), Kept(1, -1, 0), Kept(1, 0, -1)):
        with pytest.raises(ValueError, match='At least the last checkpoint must be kept'):
            Checkpoints(tmp_path / 'none', kept)
    with Checkpoints(tmp_path, TWO) as checkpoints:
        checkpoints.save(3, {'w': jnp.ones(2)})
        for step in (3, 2, -1):
            with pytest.raises(ValueError, match='the latest there is 3'):
                checkpoints.save(step, {'w': jnp.ones(2)})
        with pytest.raises(ValueError, match='Only arrays can be saved, but lr is a float'):
            checkpoints.save(4, {'lr': 0.1})
        with pytest.raises(ValueError, match='There is no step 2'):
            checkpoints.restore({'w': jnp.ones(2)}, step=2)
        assert checkpoints.steps() == [3]


SAVE_FOREVER = """
import sys
import jax, jax.numpy as jnp
from sensesearch_jax.training.checkpointing import Checkpoints, Kept

checkpoints = Checkpoints(sys.argv[1], Kept(last=2, every=0, best=0))
make = lambda step: {f"w{i}": jnp.full((64, 64), step, jnp.int32) for i in range(20)}
restored = checkpoints.restore(jax.eval_shape(lambda: make(0)))
step = 0
if restored is not None:
    step = restored.step
    assert all((x == step).all() for x in restored.arrays.values())
while True:
    print(step, flush=True)
    step += 1
    checkpoints.save(step, make(step))
"""


def test_the_latest_complete_step_survives_kills(tmp_path):
    moment = random.Random(0)
    started_from = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, '-c', SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            started_from.append(int(child.stdout.readline()))
            for _ in range(3):  # steps of which all but the last are on disk
                child.stdout.readline()
            time.sleep(moment.random() * 0.2)
            child.kill()
    assert started_from == sorted(started_from) and started_from[-1] > 0
    with Checkpoints(tmp_path, TWO) as checkpoints:
        restored = checkpoints.restore({f'w{i}': np.zeros((64, 64), np.int32) for i in range(20)})
        assert restored.step >= started_from[-1]
        assert all((np.asarray(x) == restored.step).all() for x in restored.arrays.values())
        checkpoints.save(restored.step + 1, {'w': jnp.ones(2)})
        checkpoints.wait()
        assert all(name.isdigit() for name in (path.name for path in tmp_path.iterdir()))
