"""F1 over distinct normalised words, the best over the references.

Source: OpenSenseNova/SenseNova-MARS, verl/utils/reward_score/tool.py (compute_score_f1). Each word
counts once however often it occurs in the intersection, while precision and recall are taken over
all words. MMSearch's own F1 (`mmsearch`) counts repetitions.
"""

from collections.abc import Sequence

from sensesearch_jax.rewards.plain_words import words


def score(response: str, references: Sequence[str]) -> float:
    """F1 in [0, 1] of `response` with the reference that it agrees with best; 0 without words."""
    return max((_f1(words(response), words(reference)) for reference in references), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    shared = len(set(said) & set(wanted))
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
