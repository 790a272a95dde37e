"""The distribution that tokens are drawn from, beside that of transformers."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from sensesearch_jax.rollout.sampling import Sampling, distribution

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5, 50)).astype(np.float32)


@pytest.mark.parametrize('temperature, top_k, top_p', itertools.product((1.0, 0.4), (0, 1, 8, 99), (1.0, 0.9, 0.2)))
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
