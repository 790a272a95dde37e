"""Batches of like lengths: nothing lost, nothing twice, and little padding on the lengths of real
runs."""

import itertools

from experiments.benchmarks import padding
from sensesearch_jax.batching.length_bucketing import balanced, by_length

BATCHES = [[7, 1, 9], [3, 8, 2], [6, 4, 5], [11, 10]]


def test_a_window_of_one_keeps_every_batch():
    assert by_length(BATCHES, lambda x: x, 1, 0) == [sorted(batch) for batch in BATCHES]


def test_items_of_a_window_are_cut_anew_by_length():
    found = by_length(BATCHES, lambda x: x, 3, 0)
    assert sorted(found[:3]) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]] and found[3] == [10, 11]
    assert found == by_length(BATCHES, lambda x: x, 3, 0)
    everything = by_length(BATCHES, lambda x: x, 9, 0)
    assert sorted(itertools.chain(*everything)) == list(range(1, 12)) and len(everything) == 4
    assert len({str(by_length(BATCHES, lambda x: x, 9, seed)) for seed in range(8)}) > 1


def test_rows_of_like_length_hold_every_item_once():
    rows = balanced([1, 9, 4, 6, 2, 8, 5], lambda x: x, 2)
    assert rows == [[9], [8, 1], [6, 2], [5, 4]]
    assert balanced([3, 5], lambda x: x, 4) == [[5, 3]] and balanced([], lambda x: x, 2) == []


def test_a_tenth_of_an_sft_step_is_padding_at_most():
    """As configs/sft_7b.py cuts its batches."""
    share, shapes = padding.sft(
        padding.mix(3000, 0), batch=64, rows=32, window=16, epochs=3, seed=0
    )
    assert share <= 0.1 and shapes <= 36
    before, _ = padding.sft(padding.mix(3000, 0), batch=64, rows=32, window=1, epochs=3, seed=0)
    assert before > share
