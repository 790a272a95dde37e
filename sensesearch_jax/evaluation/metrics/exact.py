"""Exact match of the paper and of its released code: equal normalised words with any reference.

Source: OpenSenseNova/SenseNova-MARS, verl/utils/reward_score/tool.py (em_check). An 'a' that is the
whole answer stays, since it may be an option's letter.
"""

from collections.abc import Sequence

from sensesearch_jax.rewards.plain_words import plain, words


def score(response: str, references: Sequence[str]) -> float:
    """1 if `response` is one of `references`, else 0."""
    return float(any(_words(response) == _words(reference) for reference in references))


def _words(text: str) -> list[str]:
    return ['a'] if plain(text).strip() == 'a' else words(text)
