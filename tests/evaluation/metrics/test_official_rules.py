"""Official rules of the benchmarks on cases that were worked out by hand from the rules' text.

Each case says why; the values were written down before the code was run on them.
"""

import json
from fractions import Fraction
from pathlib import Path

import pytest

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

HERE = Path(__file__).parent
FILES = sorted(HERE.glob('*.jsonl'))
CASES = {file.stem: list(map(json.loads, file.read_text('utf-8').splitlines())) for file in FILES}
FOUND = {
    'exact': lambda case: exact.score(case['response'], case['references']),
    'f1': lambda case: f1.score(case['response'], case['references']),
    'mmsearch': lambda case: mmsearch.score(case['response'], case['references']),
    'infoseek': lambda case: (
        number_ranges.score if case['type'] == 'number' else infoseek.score_text
    )(case['response'], case['references']),
    'hr_bench': lambda case: hr_bench.letter(case['response'], case['choices']),
    'vstar': lambda case: vstar.letter(case['response']),
    'mme_realworld': lambda case: mme_realworld.letter(case['response'], case['choices']),
    'released_letter': lambda case: released_letter.letter(case['response']),
    'simple_vqa': lambda case: simple_vqa.grade(case['response'], case['right']),
}


def test_each_rule_has_fifty_cases():
    assert CASES.keys() == FOUND.keys() and min(map(len, CASES.values())) >= 50
    for cases in CASES.values():
        assert len({json.dumps({**c, 'why': ''}) for c in cases}) == len(cases)  # none twice


@pytest.mark.parametrize(
    'rule, case',
    [(rule, case) for rule, cases in CASES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else repr(value['response'])[:30],
)
def test_the_rule_gives_what_was_worked_out_by_hand(rule, case):
    expected = next(case[name] for name in ('score', 'letter', 'grade') if name in case)
    if isinstance(expected, str) and rule in ('mmsearch', 'f1'):
        expected = pytest.approx(float(Fraction(expected)))
    assert FOUND[rule](case) == expected, case['why']


def test_simple_vqa_rewards_declining_over_being_wrong():
    """4 of 10 right, 4 wrong, 2 declined: 4/8 of those attempted; 2 · 0.5 · 0.4 / 0.9."""
    grades = ['correct'] * 4 + ['incorrect'] * 4 + ['not_attempted'] * 2
    found = simple_vqa.summary(grades)
    assert found['correct'] == 0.4 and found['not_attempted'] == 0.2
    assert found['correct_given_attempted'] == 0.5
    assert found['f_score'] == pytest.approx(4 / 9)
    bold = simple_vqa.summary(['correct'] * 4 + ['incorrect'] * 6)
    assert bold['f_score'] == pytest.approx(0.4) and bold['f_score'] < found['f_score']
    assert simple_vqa.summary([])['f_score'] == simple_vqa.summary(['incorrect'])['f_score'] == 0
