"""Names, sizes and order of the benchmarks in tables, and the paper's rows to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from sensesearch_jax.agent.trajectory import Question, Trajectory


class Benchmark(NamedTuple):
    """A benchmark as the paper reports it.

    Args:
        label: its column.
        search: whether it is one of the search sets, of which the paper has an average.
        questions: how many the paper asks; HR-Bench's are 200 in four orders each.
    """

    label: str
    search: bool
    questions: int


BENCHMARKS = {
    'mmsearch': Benchmark('MMSearch', True, 171),
    'hr_mmsearch': Benchmark('HR-MMSearch', True, 305),
    'fvqa': Benchmark('FVQA-test', True, 1800),
    'infoseek': Benchmark('InfoSeek', True, 2000),
    'simple_vqa': Benchmark('SimpleVQA', True, 1013),
    'livevqa': Benchmark('LiveVQA', True, 3602),
    'mat_search': Benchmark('MAT-Search', True, 150),
    'vstar': Benchmark('V*', False, 191),
    'hr_bench_4k': Benchmark('HR-Bench 4K', False, 800),
    'hr_bench_8k': Benchmark('HR-Bench 8K', False, 800),
    'mme_realworld': Benchmark('MME-RealWorld', False, 23_599),
}
# Pass@1 in per cent, of Qwen2.5-VL-7B; arXiv 2512.24330. `search` is the average of the search sets.
PAPER = {
    'Qwen2.5-VL-7B, agent, untrained': {
        'search': 35.50, 'mmsearch': 32.16, 'hr_mmsearch': 19.34, 'fvqa': 36.00,
    },
    'MMSearch-R1': {'search': 52.49, 'mmsearch': 53.80, 'hr_mmsearch': 20.33, 'fvqa': 58.40},
    'SenseSearch, SFT': {
        'search': 53.06, 'mmsearch': 53.80, 'hr_mmsearch': 29.80, 'fvqa': 56.72, 'vstar': 82.20,
    },
    'SenseSearch, RL': {
        'search': 57.43, 'mmsearch': 59.06, 'hr_mmsearch': 38.52, 'fvqa': 61.17, 'vstar': 83.84,
    },
}  # fmt: skip


def label(name: str) -> str:
    """The column of a set; a set that the paper does not report is called by its name."""
    return BENCHMARKS[name].label if name in BENCHMARKS else name or 'questions'


def order(name: str) -> tuple[int, str]:
    """Sort key: the paper's order, others after them."""
    names = list(BENCHMARKS)
    return (names.index(name) if name in BENCHMARKS else len(names), name)


def named_by_set(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories; of several sets, each question's id and category name its set as well."""
    if len({t.question.source for t in trajectories}) < 2:
        return list(trajectories)

    def named(q: Question) -> Question:
        category = ': '.join(filter(None, [label(q.source), q.category]))
        return dataclasses.replace(q, id=f'{q.source}/{q.id}', category=category)

    return [dataclasses.replace(t, question=named(t.question)) for t in trajectories]
