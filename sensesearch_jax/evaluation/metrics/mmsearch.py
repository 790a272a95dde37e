"""MMSearch's F1: over normalised words with their repetitions, the best over the accepted answers.

Source: the scripts of MMSearch (CaraJ7/MMSearch, arXiv 2409.12959), which lmms-eval carries as
tasks/mmsearch/score/f1_score.py. An item that was not answered scores 0, and the score of the set is
the mean over its 300 items; the paper's 171 are those with an image.
"""

from collections import Counter
from collections.abc import Sequence

from sensesearch_jax.rewards.plain_words import words


def score(response: str, references: Sequence[str]) -> float:
    """F1 in [0, 1].

    Args:
        response: the answer.
        references: the accepted answer and its alternatives.
    """
    return max((_f1(words(response), words(reference)) for reference in references), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:  # an answer without words is right where none are wanted
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))
