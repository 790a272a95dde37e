"""Comparison of two answers in words: as dates, as quantities, or else word for word."""

from __future__ import annotations

from functools import lru_cache

from tools_server.answer_matching import dates, numbers
from tools_server.answer_matching.characters import clean
from tools_server.answer_matching.words import same_words

MOST_CHARS = 4_000  # an answer is short; a longer text is the same as itself alone


@lru_cache(maxsize=128)
def answer_text(text: str) -> str:
    """`text` cleaned; one that is too long for an answer stays as it is."""
    return text if len(text) > MOST_CHARS else clean(text)


def same_answer(one: str, other: str, question: str) -> bool:
    """Whether two texts are the same answer to `question`; never for texts without anything to see.

    A yes is sure: a judge is asked after a no, and nobody after a yes. So what may be different is.

    Args:
        one: the first text.
        other: the second; the order does not matter.
        question: what was asked; it tells which part of a date counts, and that a number is a name
            (a version).
    """
    one, other = answer_text(one), answer_text(other)
    if not one or not other:
        return False
    if one == other:
        return True
    if max(len(one), len(other)) > MOST_CHARS:
        return False
    for compare in (dates.compare, numbers.compare):
        verdict = compare(one, other, question)
        if verdict is not None:
            return verdict
    return same_words(one, other)
