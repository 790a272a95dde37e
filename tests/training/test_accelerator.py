"""The table of the 7B geometry on one accelerator is what was measured, and says where nothing was."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import accelerator
from experiments.benchmarks.work import Lengths, group_flops
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.training.flops import tower_flops

DOCS = Path(__file__).parents[2] / 'docs'


def test_the_committed_table_is_that_of_the_committed_measurements():
    results = [json.loads(line) for line in (DOCS / 'accelerator.jsonl').read_text().splitlines()]
    assert accelerator.table(results) == (DOCS / 'accelerator.md').read_text()


def test_shares_are_of_the_published_rate_and_of_what_the_same_card_gave():
    common = {'date': '2026-01-01', 'machine': 'a machine', 'layers': 0, 'xla_flags': ''}
    results = [
        common | {'card': 'NVIDIA H200', 'part': 'limits', 'what': 'copy', 'bytes': 4e12},
        common
        | {
            'card': 'NVIDIA H200',
            'part': 'sample',
            'what': 'decode',
            'seconds': 0.01,
            'bytes': 2.4e10,
        },
        common
        | {'card': 'another', 'part': 'sample', 'what': 'decode', 'seconds': 0.01, 'bytes': 2.4e10},
        common | {'card': 'another', 'part': 'train', 'what': 'SFT', 'failed': 'no room'},
    ]
    *_, known, unknown, failed = accelerator.table(results).splitlines()
    assert '2.40 TB/s | 50 % | 60 %' in known
    assert '2.40 TB/s | unknown | unknown' in unknown
    assert 'failed: no room' in failed


def test_flops_are_those_of_the_papers_sizes():
    """Two per parameter and token, and attention; against counts made by hand for the 7B."""
    sizes = RELEASED['7B']
    layer = 3584 * (2 * 3584 + 2 * 512 + 3 * 18_944)
    assert group_flops(sizes, 1, Lengths(10, 0, 2)) == pytest.approx(
        28 * (2 * layer * 12 + 4 * 3584 * (10 * 10 / 2 + 2 * 10 + 2 * 2 / 2))
        + 2 * 2 * 3584 * 152_064
    )
    block = 1280 * (4 * 1280 + 3 * 3420)
    assert tower_flops(sizes.vision, 64) == pytest.approx(
        64 * (32 * (2 * block + 4 * 1280 * 64) + 2 * 1176 * 1280) + 16 * 2 * 5120 * (5120 + 3584)
    )
