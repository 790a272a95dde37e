"""SimpleVQA's grades and its F-score, which rewards declining over being wrong.

Source: SimpleVQA/SimpleVQA, simpleVQA_eval.py (arXiv 2502.13059), after OpenAI's SimpleQA: a grader
calls an answer correct, incorrect or not attempted; the F-score is the harmonic mean of the share of
correct answers among all and among those attempted.

The grader there is a model with three grades. Here the run's judge says whether an answer is right,
and of those that are not, the ones that decline by their words are not attempted.
"""

import re
from collections import Counter
from collections.abc import Sequence

CORRECT, INCORRECT, NOT_ATTEMPTED = GRADES = 'correct', 'incorrect', 'not_attempted'

_CANNOT = (
    r"(?:cannot|can ?not|can't|can’t|could ?n[o'’]?t|could not|unable to|not able to|am unable to)"
)
_VERBS = (
    r'(?:be )?(?:answer|determine|identify|tell|say|provide|find|recogni[sz]e|confirm|see|view|know|'
    r'determined|identified|answered|found)'
)
_DECLINES = re.compile(
    rf"\b{_CANNOT} (?:\w+ )?{_VERBS}\b"
    r"|\b(?:i|we) (?:do not|don't|don’t) (?:\w+ )?know\b"
    r"|\b(?:i am|i'm|i’m|we are) (?:not sure|unsure|uncertain|sorry)\b"
    r'|^sorry\b'
    r'|\bnot (?:enough|sufficient) (?:information|evidence|context|detail)'
    r'|\binsufficient (?:information|evidence|context)'
    r'|\bno (?:answer|information|idea)\b'
    r'|^(?:unknown|unclear|n/?a|none|unanswerable|not (?:known|sure|available|specified|found|enough))\W*$',
    re.IGNORECASE,
)  # fmt: skip
_SEEN = re.compile(r'[^\W_]')


def grade(response: str, right: bool) -> str:
    """One of `GRADES`.

    Args:
        response: the answer; one without a letter or digit is not attempted.
        right: the judge's verdict on it.
    """
    if right:
        return CORRECT
    text = ' '.join(response.split())
    if not _SEEN.search(text) or _DECLINES.search(text):
        return NOT_ATTEMPTED
    return INCORRECT


def summary(grades: Sequence[str]) -> dict[str, float]:
    """Shares of the grades, 'correct_given_attempted' and 'f_score', all in [0, 1]; 0 without any."""
    counts, total = Counter(grades), max(len(grades), 1)
    shares = {name: counts[name] / total for name in GRADES}
    attempted = shares[CORRECT] + shares[INCORRECT]
    given = shares[CORRECT] / attempted if attempted else 0.0
    both = given + shares[CORRECT]
    f_score = 2 * given * shares[CORRECT] / both if both else 0.0
    return {**shares, 'correct_given_attempted': given, 'f_score': f_score}
