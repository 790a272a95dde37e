"""The distribution that tokens are drawn from, beside that of transformers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sensesearch_jax.rollout.sampling import Sampling, distribution, draw

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5, 50)).astype(np.float32)


@pytest.mark.parametrize(
    'temperature, top_k, top_p', itertools.product((1.0, 0.4), (0, 1, 8, 99), (1.0, 0.9, 0.2))
)
def test_as_in_transformers(temperature, top_k, top_p):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    warpers.append(TopPLogitsWarper(top_p))
    logits = torch.from_numpy(LOGITS.reshape(-1, 50))
    wanted = torch.log_softmax(warpers(None, logits), -1).numpy().reshape(LOGITS.shape)
    found = np.asarray(distribution(LOGITS, Sampling(temperature, top_k, top_p)))
    kept = np.isfinite(wanted)
    assert kept.any(-1).all() and (kept.all() or top_k in (1, 8) or top_p < 1)
    np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-5, atol=1e-5)
    assert (np.exp(found[~kept]) == 0).all()


def test_greedy_keeps_the_whole_distribution():
    found = np.asarray(distribution(LOGITS, Sampling(0, 1, 0.1)))
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)
    assert (found > -100).all()


@pytest.mark.parametrize(
    'sampling, message',
    [
        (Sampling(-1), 'temperature -1 is negative'),
        (Sampling(1, -2), 'top_k -2 is negative'),
        (Sampling(1, 0, 0), 'top_p 0 is out of range; give a number above 0 and at most 1'),
        (Sampling(1, 0, 1.5), 'top_p 1.5 is out of range'),
    ],
)
def test_refusals(sampling, message):
    with pytest.raises(ValueError, match=message):
        sampling.check()


def drawn(log_probs, count, at_once=10_000):
    """Tokens of one distribution, each drawn with a key of its own."""
    many = jax.jit(jax.vmap(draw, (0, None)))
    keys = jax.random.split(jax.random.key(0), (count // at_once, at_once))
    return np.concatenate([many(k, log_probs) for k in keys])


def misfit(found, expected):
    """The p-value of these counts under their expected ones."""
    return scipy.stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue


@pytest.mark.parametrize('place', [0, pytest.param(77_777, marks=pytest.mark.slow)])
def test_rare_tokens_come_as_often_as_they_should(place):
    """Of a large vocabulary a hundredth is in tokens of 6.6e-8 each: all together, and any part of
    them."""
    vocabulary, count = 151_936, 60_000
    rare = 0.01 / (vocabulary - 1)
    log_probs = jnp.full(vocabulary, np.log(rare), jnp.float32).at[place].set(np.log(0.99))
    tokens = drawn(log_probs, count)
    tail = tokens[tokens != place]
    assert misfit(np.array([len(tail), count - len(tail)]), np.array([0.01, 0.99])) > 1e-3
    edges = np.linspace(0, vocabulary, 33).astype(int)
    assert misfit(np.histogram(tail, edges)[0], np.diff(edges)) > 1e-3
    block = np.abs(tail - place) < 600  # those beside the one that has nearly all
    of_block = np.abs(np.arange(vocabulary) - place) < 600
    assert (
        misfit(
            np.array([block.sum(), (~block).sum()]),
            np.array([of_block.sum() - 1, (~of_block).sum()]),
        )
        > 1e-3
    )


@pytest.mark.parametrize('vocabulary', [1, 2, 50, 97, 640])
def test_the_draw_follows_the_distribution(vocabulary):
    """Whether or not blocks of one size make up the vocabulary, and with tokens that cannot come."""
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (vocabulary,)) * 2)
    if vocabulary > 2:
        log_probs = distribution(log_probs, Sampling(1.0, vocabulary // 2))
    expected = np.exp(np.asarray(log_probs, np.float64))
    found = np.bincount(drawn(log_probs, 100_000), minlength=vocabulary)
    assert len(found) == vocabulary and not found[expected == 0].any()
    often = expected * found.sum() > 5
    assert vocabulary < 3 or misfit(found[often], expected[often]) > 1e-3


def test_equal_keys_draw_equal_tokens_whatever_is_beside_them():
    logits = jax.nn.log_softmax(jax.random.normal(jax.random.key(2), (6, 640)))
    keys = jax.random.split(jax.random.key(3), 6)
    together = jax.jit(jax.vmap(draw))(keys, logits)
    assert [int(draw(k, row)) for k, row in zip(keys, logits)] == together.tolist()
