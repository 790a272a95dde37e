"""The benchmarks of the tables and metrics are published sets, by the same names."""

from sensesearch_jax.data import published
from sensesearch_jax.evaluation.benchmarks import BENCHMARKS, PAPER
from sensesearch_jax.evaluation.metrics.table import OFFICIAL


def test_names_are_those_of_the_published_sets():
    assert set(BENCHMARKS) <= set(published.NAMES)
    assert set(OFFICIAL) <= set(published.NAMES)
    assert {name for row in PAPER.values() for name in row} <= {'search', *BENCHMARKS}


def test_sizes_are_those_of_the_published_sets():
    for name, benchmark in BENCHMARKS.items():
        assert published.published_set(name).splits['test'].size == benchmark.questions, name
