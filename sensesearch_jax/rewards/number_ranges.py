"""Numbers and ranges in answers, by InfoSeek's rule.

Source: edchengg/infoseek_eval, infoseek_eval.py (arXiv 2302.11713). The first two numbers that an
answer names count, a lower one before a higher being a range. A single number is right within the
accepted range; a range is right if it lies within, or if the two overlap by half of their union.
What names no number is read as the range from 0 to 0.
"""

import re
from collections.abc import Sequence

TOLERANCE = 0.1  # of a reference that is a single number
_NUMBER = re.compile(r'[+-]?\.?\d+(?:,\d{3})*\.?\d*(?:[eE][+-]?\d+)?')
_RANGE_SIGN = re.compile(r'(?<=\d)-')  # no sign of the number behind it
_TINY = 1e-12  # length of a range without one


def score(response: str, references: Sequence[float]) -> float:
    """1 if the number or range in `response` is right, else 0.

    Args:
        response: the answer.
        references: the two ends of the accepted range, or a single number, which is accepted within
            a tenth of its value.
    """
    return agree(read(response), references)


def agree(said: float | tuple[float, float], references: Sequence[float]) -> float:
    """The same for a number or range that was read otherwise."""
    low, high = references if len(references) == 2 else around(references[0])
    if not isinstance(said, tuple):
        return float(low <= said <= high)
    if low <= said[0] <= high and low <= said[1] <= high:
        return 1.0
    return float(_overlap(said, (low, high)) >= 0.5 - _TINY)


def around(number: float) -> tuple[float, float]:
    """The range that a single reference number stands for."""
    margin = abs(number) * TOLERANCE
    return number - margin, number + margin


def read(text: str) -> float | tuple[float, float]:
    """The number that a text names first, or the range; a later number that is lower is left out."""
    found = [
        float(number.replace(',', '').strip('.'))
        for number in _NUMBER.findall(_RANGE_SIGN.sub(' - ', text))
    ]
    if not found:
        return 0.0, 0.0
    if len(found) > 1 and found[0] <= found[1]:
        return found[0], found[1]
    return found[0]


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two ranges."""
    shared = max(0.0, min(max(one), max(other)) - max(min(one), min(other)))
    union = (max(one) - min(one) + _TINY) + (max(other) - min(other) + _TINY) - shared
    return shared / union if union else 0.0
