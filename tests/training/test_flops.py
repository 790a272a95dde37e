"""Model FLOPs and their share of the devices' peak, against numbers worked out by hand."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_batches import ROWS, batch_of

from sensesearch_jax.model.config import RELEASED, LanguageSizes
from sensesearch_jax.recipes.rl_update import Passes
from sensesearch_jax.training import flops
from sensesearch_jax.training.flops import forward_flops, step_flops, training_flops, utilization

TEXT = LanguageSizes(
    layers=2, width=8, mlp_width=10, heads=2, kv_heads=1, vocabulary=100, mrope_sections=(0, 1, 1)
)
# Of a layer: query 8 × 8, key and value 8 × 4, output 8 × 8, and three of 8 × 10.
MATRICES = 2 * (64 + 32 + 32 + 64 + 3 * 80)


def test_a_token_is_two_operations_per_weight_and_a_pair_four_per_width():
    one = forward_flops(TEXT, [0], [[1]])
    assert one == 2 * MATRICES + 2 * 100 * 8 + 4 * 2 * 8 * 0.5
    # A prompt of 3 for two members of 2 and 1: 3 + 2 + 1 tokens, the head on 3 of them, and
    # 4.5 + (6 + 2) + (3 + 0.5) pairs.
    assert forward_flops(TEXT, [3], [[2, 1]]) == 2 * MATRICES * 6 + 2 * 800 * 3 + 4 * 2 * 8 * 16
    assert forward_flops(TEXT, [3, 0], [[2, 1], [1, 0]]) == one + forward_flops(TEXT, [3], [[2, 1]])


def test_a_token_meets_the_experts_that_it_uses_and_their_router():
    sparse = dataclasses.replace(TEXT, experts=16, experts_used=3)
    assert flops.decoder_matrices(sparse) == 2 * (64 + 32 + 32 + 64 + 3 * 3 * 80 + 8 * 16)


def test_the_7b_has_its_weights():
    """Of 7.6 billion parameters 1.09 are in the embedding and in the head, and few in norms."""
    assert flops.decoder_matrices(RELEASED['7B'].language) == pytest.approx(6.525e9, rel=1e-3)


def test_padding_is_not_counted_and_a_reference_is_one_pass_more():
    tight, padded = batch_of(ROWS[:2]), batch_of(ROWS[:2], batch=4)
    forward = forward_flops(
        TEXT,
        [len(row.prompt) - 1 for row in ROWS[:2]],
        np.concatenate(
            [
                [[1 + len(m.tokens) for m in row.members] + [0] * (3 - len(row.members))]
                for row in ROWS[:2]
            ]
        ),
    )
    assert training_flops(TEXT, tight) == training_flops(TEXT, padded) == 3 * forward
    passes = Passes(TEXT)
    passes.add(padded, [], False)
    passes.add(tight, [], True)
    assert passes.flops == 7 * forward


def test_frozen_matrices_have_no_gradients_and_attention_has_those_of_both_factors():
    one = 2 * MATRICES + 2 * 100 * 8
    assert step_flops(TEXT, [0], [[1]], adapters=True) == 2 * one + 3 * 4 * 2 * 8 * 0.5
    assert step_flops(TEXT, [0], [[1]], True, True) == 3 * one + 4 * 4 * 2 * 8 * 0.5


def test_mfu_is_the_share_of_the_peak_of_all_devices(monkeypatch):
    assert utilization(1e12, 1.0, 1) == {}  # a CPU
    for kind, share in (('TPU v5 lite', 0.25), ('TPU v5', 197 / 4 / 459), ('another card', None)):
        monkeypatch.setattr(jax, 'devices', lambda kind=kind: [SimpleNamespace(device_kind=kind)])
        found = utilization(197e12 * 4, 2.0, 8)
        assert found == ({} if share is None else {'mfu': pytest.approx(share)})
