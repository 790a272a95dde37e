"""The metrics by name, and which of them each benchmark publishes beside the paper's own.

The paper's metric is the run's accuracy: a match with a reference or else the judge, and the letter
for questions with options. Every set has that; the metrics here stand beside it. An answer that was
never given scores 0 in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.evaluation.metrics import (
    exact,
    hr_bench,
    infoseek,
    mme_realworld,
    mmsearch,
    released_letter,
    simple_vqa,
    vstar,
)
from sensesearch_jax.rewards import f1, number_ranges
from tools_server.answer_matching.gold import gold_letters


@dataclass(frozen=True)
class Metric:
    """A rule by which a response to a question gets a score in [0, 1].

    Args:
        name: in results and tables.
        source: where the rule is published.
        score: (question, response, whether the run's accuracy is 1) to the score.
    """

    name: str
    source: str
    score: Callable[[Question, str, bool], float]


def _by_letter(question: Question, letter: str | None) -> float:
    return float(letter in gold_letters(question.answers, question.choices))


def _infoseek(question: Question, response: str) -> float:
    """By the question's type, which the set names; without one, by what its answers are for."""
    kind = str(question.truth.get('question_type', '')).lower()
    if kind == 'numerical' or (not kind and question.truth.get('range')):
        accepted = question.truth.get('range') or question.answers[:2]
        return number_ranges.score(response, [float(end) for end in accepted])
    return infoseek.score_text(response, question.answers)


METRICS = {
    metric.name: metric
    for metric in (
        Metric('exact', 'SenseNova-MARS', lambda q, said, _: exact.score(said, q.answers)),
        Metric('f1', 'SenseNova-MARS', lambda q, said, _: f1.score(said, q.answers)),
        Metric(
            'released_letter',
            'SenseNova-MARS',
            lambda q, said, _: _by_letter(q, released_letter.letter(said)),
        ),
        Metric('mmsearch_f1', 'MMSearch', lambda q, said, _: mmsearch.score(said, q.answers)),
        Metric('infoseek', 'InfoSeek', lambda q, said, _: _infoseek(q, said)),
        Metric(
            'hr_bench',
            'VLMEvalKit',
            lambda q, said, _: _by_letter(q, hr_bench.letter(said, q.choices)),
        ),
        Metric('vstar', 'lmms-eval', lambda q, said, _: _by_letter(q, vstar.letter(said))),
        Metric(
            'mme_realworld',
            'MME-RealWorld',
            lambda q, said, _: _by_letter(q, mme_realworld.letter(said, q.choices)),
        ),
        Metric(
            'simple_vqa',
            'SimpleVQA',
            lambda _, said, right: float(simple_vqa.grade(said, right) == simple_vqa.CORRECT),
        ),
    )
}
OFFICIAL = {
    'mmsearch': 'mmsearch_f1',
    'mmsearch_all': 'mmsearch_f1',
    'infoseek': 'infoseek',
    'infoseek_val': 'infoseek',
    'simple_vqa': 'simple_vqa',
    'vstar': 'vstar',
    'vstar_published_order': 'vstar',
    'hr_bench_4k': 'hr_bench',
    'hr_bench_8k': 'hr_bench',
    'mme_realworld': 'mme_realworld',
}


def metrics_of(question: Question) -> Sequence[Metric]:
    """The metrics beside accuracy: of the question's set where it publishes one, and of its kind."""
    general = ('released_letter',) if question.choices else ('exact', 'f1')
    official = OFFICIAL.get(question.source)
    return [METRICS[name] for name in (official, *general) if name]
