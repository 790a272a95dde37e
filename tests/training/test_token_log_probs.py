"""Token log-probs in pieces: equal to a plain log-softmax, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sensesearch_jax.runtime.mesh import make_mesh, rows_sharding
from sensesearch_jax.training.token_log_probs import token_log_probs

ROWS, TOKENS, WIDTH, VOCABULARY = 2, 37, 16, 61


# Numpy examples and compiled functions: compiling single operations would take most of the tests'
# time.
compiled = jax.jit(token_log_probs, static_argnames='chunk')


def example(rows=(ROWS,), tokens=TOKENS):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(*rows, tokens, WIDTH)).astype(np.float32)
    head = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    return hidden, head, rng.integers(0, VOCABULARY, (*rows, tokens))


@jax.jit
def plain(hidden, head, targets, temperature=1.0, suppressed=None):
    logits = hidden @ head.T / temperature
    if suppressed is not None:
        logits = jnp.where(suppressed, -1e30, logits)
    scores = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(scores) * scores).sum(-1)
    return jnp.take_along_axis(scores, targets[..., None], -1)[..., 0], entropy


@pytest.mark.parametrize('chunk', [1, 5, 36, 512])
def test_values_and_gradients_equal_the_plain_form(chunk):
    hidden, head, targets = example()
    weights = np.random.default_rng(1).normal(size=(2, *targets.shape))

    def value_and_gradient(function):
        def total(hidden, head, temperature):
            pair = function(hidden, head, targets, temperature=temperature)
            return (weights[0] * pair[0] + weights[1] * pair[1]).sum(), pair

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))

    ours = value_and_gradient(functools.partial(token_log_probs, chunk=chunk))
    theirs = value_and_gradient(plain)
    for temperature in (1.0, 0.7):
        (_, our_pair), our_gradients = ours(hidden, head, temperature)
        (_, their_pair), their_gradients = theirs(hidden, head, temperature)
        for a, b in zip(our_pair, their_pair):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for a, b in zip(our_gradients, their_gradients):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_tokens_that_are_not_wanted_are_zero_and_take_no_part(share):
    hidden, head, targets = example()
    wanted = np.random.default_rng(2).random(targets.shape) < share
    targets[~wanted] = -100  # which would be NaN
    weights = np.random.default_rng(1).normal(size=(2, *targets.shape))

    def total(function, hidden, head, temperature):
        pair = [jnp.where(wanted, x, 0) for x in function(hidden, head, targets, temperature)]
        return (weights[0] * pair[0] + weights[1] * pair[1]).sum(), pair

    def ours(hidden, head, targets, temperature):
        pair = token_log_probs(
            hidden, head, targets, wanted=wanted, temperature=temperature, chunk=10
        )
        return [jnp.where(wanted, x, 1e6 * x) for x in pair]  # no gradient comes from elsewhere

    both = jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True)
    found = jax.jit(functools.partial(both, ours))(hidden, head, 0.7)
    expected = jax.jit(functools.partial(both, plain))(hidden, head, 0.7)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))
    values = jax.jit(ours)(hidden, head, targets, 0.7)
    assert all(not np.any(np.asarray(x)[~wanted]) for x in values)


@pytest.mark.parametrize('rows', [(), (2, 3)])
def test_any_leading_axes(rows):
    hidden, head, targets = example(rows, tokens=7)
    for ours, theirs in zip(compiled(hidden, head, targets, chunk=3), plain(hidden, head, targets)):
        assert ours.shape == targets.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_suppressed_ids_have_no_probability():
    hidden, head, targets = example()
    suppressed = np.isin(np.arange(VOCABULARY), [3, 40])
    targets = np.where(suppressed[targets], 0, targets)
    targets[0, 0] = 3

    def total(hidden, head):
        log_probs, entropy = token_log_probs(hidden, head, targets, suppressed=suppressed, chunk=10)
        return jnp.where(targets == 3, 0, log_probs).sum() + entropy.sum(), log_probs

    (_, log_probs), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        hidden, head
    )
    assert log_probs[0, 0] == -jnp.inf
    np.testing.assert_allclose(
        log_probs[:, 1:], plain(hidden, head, targets, suppressed=suppressed)[0][:, 1:], atol=1e-5
    )
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert not np.any(np.asarray(gradients[1])[[3, 40]])


def test_ids_outside_the_vocabulary_are_nan_and_leave_gradients_finite():
    hidden, head, targets = example()
    targets[:, 0], targets[:, 1] = -100, VOCABULARY

    def total(hidden):
        log_probs, _ = token_log_probs(hidden, head, targets, chunk=10)
        return jnp.where(jnp.arange(TOKENS) > 1, log_probs, 0).sum(), log_probs

    (_, log_probs), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(hidden)
    assert np.all(np.isnan(log_probs[:, :2])) and np.all(np.isfinite(log_probs[:, 2:]))
    assert np.all(np.isfinite(gradient))


def test_extreme_logits():
    hidden, head, targets = example()
    log_probs, entropy = compiled(hidden * 1e4, head, targets, chunk=10)
    assert (
        np.all(np.isfinite(log_probs)) and np.all(np.isfinite(entropy)) and np.all(entropy >= -1e-2)
    )


def test_half_precision_gives_float32():
    hidden, head, targets = example()
    log_probs, entropy = compiled(hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16), targets)
    assert log_probs.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose(log_probs, plain(hidden, head, targets)[0], atol=0.3)


def test_never_all_logits_at_once():
    """At Qwen2.5's vocabulary: compiled memory, forward and backward, is an eighth of all float32
    logits."""
    tokens, width, vocabulary = 8192, 64, 151_936
    shapes = (
        jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )

    def total(hidden, head, targets):
        log_probs, entropy = token_log_probs(hidden, head, targets)
        return log_probs.sum() + entropy.sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes <= tokens * vocabulary * 4 / 8


def test_a_temperature_has_a_gradient():
    hidden, head, targets = example()
    weights = np.random.default_rng(1).normal(size=(2, *targets.shape))

    def slope(function):
        def total(t):
            return sum(
                (w * x).sum()
                for w, x in zip(weights, function(hidden, head, targets, temperature=t))
            )

        return jax.jit(jax.grad(total))(0.7)

    np.testing.assert_allclose(
        slope(functools.partial(token_log_probs, chunk=10)), slope(plain), rtol=1e-4
    )


@pytest.mark.parametrize(
    'sizes',
    [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'fsdp': 8}, {'fsdp': 2, 'sequence': 2, 'tensor': 2}],
)
def test_cut_over_a_mesh(sizes):
    """Values and gradients of rows and vocabulary in parts equal those in one piece; a sequence axis
    that divides neither members nor tokens leaves them whole.
    """
    mesh = make_mesh(sizes)
    hidden, head, targets = example(rows=(8, 3), tokens=9)
    head, targets = head[:60], targets % 60
    suppressed = np.isin(np.arange(60), [3, 40])
    weights = np.random.default_rng(1).normal(size=(2, *targets.shape))
    weights[0][suppressed[targets]] = 0
    wanted = np.random.default_rng(2).random(targets.shape) < 0.6
    wanted[1] = False  # a row with none beside rows with many

    def total(hidden, head):
        log_probs, entropy = token_log_probs(
            hidden, head, targets, wanted=wanted, suppressed=suppressed, chunk=10
        )
        return (
            jnp.where(weights[0] == 0, 0, weights[0] * log_probs) + weights[1] * entropy
        ).sum(), log_probs

    both = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    expected = jax.jit(both)(hidden, head)
    with jax.set_mesh(mesh):
        found = jax.jit(both)(jax.device_put(hidden, rows_sharding(mesh, 4)), head)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-5 * float(np.abs(np.where(np.isinf(b), 0, b)).max())
        )


def test_mistakes_are_refused_with_a_sentence():
    hidden, head, targets = example()
    for arguments, options, sentence in [
        ((hidden, head, targets[:, 1:]), {}, 'hidden must be'),
        ((hidden, head.T, targets), {}, 'head must be'),
        ((hidden, head, targets), {'wanted': np.ones(3, bool)}, 'wanted must be'),
        ((hidden, head, targets), {'suppressed': np.zeros(3, bool)}, 'suppressed must be'),
        ((hidden, head, targets), {'temperature': 0.0}, 'temperature must be above 0'),
        ((hidden, head, targets), {'chunk': 0}, 'chunk must be at least 1'),
    ]:
        with pytest.raises(ValueError, match=sentence):
            token_log_probs(*arguments, **options)


def test_no_tokens():
    hidden, head, targets = example(tokens=0)
    assert [x.shape for x in token_log_probs(hidden, head, targets)] == [(ROWS, 0)] * 2
