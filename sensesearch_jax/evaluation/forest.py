"""Places and texts of the pages' interval charts: a dot with its whisker a row, on a common axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sensesearch_jax.evaluation.paper_table import number, percent

PERCENT_TICKS = [
    {'x': x, 'text': f'{x} %' if x == 100 else str(x), 'minor': x % 50 > 0}
    for x in (0, 25, 50, 75, 100)
]


def interval_place(bounds: Mapping[str, float | None]) -> dict[str, Any]:
    """The row of an accuracy: its bounds, and the places of dot and whisker in per cent."""
    whole = bounds['low'] is not None
    return {
        **bounds,
        'x': 100 * bounds['mean'],
        'span': [100 * bounds['low'], 100 * bounds['high']] if whole else None,
    }


def difference_chart(
    found: Sequence[Mapping[str, Any]], label: Callable[[str], str]
) -> dict[str, Any] | None:
    """Paired differences with places on a common axis that holds all intervals and zero; None of none.

    Args:
        found: each with 'a', 'b', 'category', 'questions', 'mean', 'low' and 'high'.
        label: the text of a run's name or a category.
    """
    if not found:
        return None
    ends = [end for d in found for end in (d['mean'], d['low'], d['high']) if end is not None]
    step = 0.1 if max(ends) - min(ends) <= 0.8 else 0.2
    first = min(0, math.floor(min(ends) / step))
    last = max(1, math.ceil(max(ends) / step))

    def place(value: float) -> float:
        return 100 * (value / step - first) / (last - first)

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for d in found:
        groups.setdefault((d['a'], d['b']), []).append(
            {
                'label': label(d['category']),
                'n': d['questions'],
                'mean': d['mean'],
                'low': d['low'],
                'high': d['high'],
                'x': place(d['mean']),
                'span': None if d['low'] is None else [place(d['low']), place(d['high'])],
                'decided': d['low'] is not None and (d['low'] > 0 or d['high'] < 0),
            }
        )
    return {
        'groups': [
            {'label': f'{label(a)} − {label(b)}', 'rows': rows} for (a, b), rows in groups.items()
        ],
        'ticks': [
            {
                'x': place(i * step),
                'text': f'{100 * i * step:+.0f}'.replace('-', '−') if i else '0',
                'minor': i not in (0, last),
            }
            for i in range(first, last + 1)
        ],
        'zero': place(0),
    }


def signed(value: float | None) -> str:
    """A difference of shares in points."""
    return '–' if value is None else f'{100 * value:+.1f}'.replace('-', '−')


def reading(value: float, share: bool) -> str:
    """A value of a curve or an axis: short, with as many digits as say something."""
    if share:
        return f'{100 * value:.3g} %'
    # A fourth digit above 1: amplifications and ratios differ from 1 by little.
    digits = 4 if 1 <= abs(value) < 10 else 3
    return (f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.{digits}g}').replace('-', '−')


FILTERS = {'percent': percent, 'number': number, 'signed': signed, 'reading': reading}
"""The filters of charts.html."""
