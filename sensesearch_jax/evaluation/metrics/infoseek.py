"""InfoSeek's accuracy: exact match for names and times, ranges for numbers.

Source: edchengg/infoseek_eval, infoseek_eval.py (arXiv 2302.11713). The leniency with times (a year
before or after, or the year alone where a date is asked for) and with names lies in the accepted
answers that the set lists, `answer_eval`; the rule itself compares normalised words.

Numbers are right within ranges: `rewards.number_ranges`.
"""

from collections.abc import Sequence

from sensesearch_jax.rewards.plain_words import words


def score_text(response: str, references: Sequence[str]) -> float:
    """1 if the normalised words of a name or a time are those of a reference, else 0."""
    return float(any(words(response) == words(reference) for reference in references))
