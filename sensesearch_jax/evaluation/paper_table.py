"""The results in the form of the paper's tables, as rows of text, Markdown and terminal lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensesearch_jax.evaluation.benchmarks import BENCHMARKS, PAPER, label, order

Sets = Mapping[str, Mapping[str, Any]]  # name of a set to its `set_summary.summarise_set`
Rows = list[list[str]]  # the head first
# Scores of a whole set, as its own rule has them.
PARTS = (
    ('f_score', 'F-score', 'SimpleVQA'),
    ('harmonic_mean', 'harmonic mean of the splits', 'InfoSeek'),
)


def paper_rows(runs: Mapping[str, Sets]) -> Rows:
    """Pass@1 in per cent by set, with the paper's own rows where it reports one of these sets.

    The search sets' average stands first where there are several, with how many of them were asked.
    """
    names = _names(runs)
    searches = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].search]
    every = sum(benchmark.search for benchmark in BENCHMARKS.values())
    average = len(searches) > 1
    share = '' if len(searches) == every else f' ({len(searches)} of {every} sets)'
    rows = [['Pass@1, %', *([f'Search average{share}'] if average else []), *map(label, names)]]
    for run, sets in runs.items():
        cells = [_average([sets.get(name) for name in searches])] if average else []
        scores = (bounded(sets[name]['pass_at_1']) if name in sets else '–' for name in names)
        rows.append([run, *cells, *scores])
    for run, numbers in PAPER.items():
        if any(name in numbers for name in names):
            cells = [_plain(numbers['search'] if not share else None)] if average else []
            rows.append([f'paper: {run}', *cells, *(_plain(numbers.get(name)) for name in names)])
    return rows


def metric_rows(runs: Mapping[str, Sets]) -> Rows:
    """The metrics beside the paper's, a row per run, set and metric; the set's own has a star."""
    rows = [['Run', 'Set', 'Metric', 'Rule of', 'Score, %']]
    for run, sets in runs.items():
        for name in sorted(sets, key=order):
            found = sets[name]
            for metric, bounds in found['metrics'].items():
                star = '*' if metric == found['official'] else ''
                rows.append([run, label(name), metric + star, bounds['source'], bounded(bounds)])
            for part, title, rule in PARTS:
                if part in found['official_parts']:
                    score = _plain(100 * found['official_parts'][part])
                    rows.append([run, label(name), f'{title}*', rule, score])
            if name == 'mme_realworld' and found['category_mean'] is not None:
                score = 100 * found['category_mean']
                rows.append([run, label(name), 'Avg-C*', 'MME-RealWorld', _plain(score)])
    return rows


def sample_rows(runs: Mapping[str, Sets]) -> Rows:
    """Pass@1, Avg@k and Pass@k of the sets whose questions were asked several times."""
    rows = [['Run', 'Set', 'k', 'Pass@1, %', 'Avg@k, %', 'Pass@k, %']]
    for run, sets in runs.items():
        for name in sorted(sets, key=order):
            found = sets[name]
            if found['samples'] > 1:
                best = found['pass_at_k']
                cells = bounded(found['pass_at_1']), bounded(found['avg_at_k'])
                shown = _plain(None if best is None else 100 * best)
                rows.append([run, label(name), str(found['samples']), *cells, shown])
    return rows


def slice_rows(sets: Sets, field: str) -> Rows:
    """Accuracy, and the official metric where one is there, by 'category' or 'difficulty' of each
    set.

    Args:
        sets: of one run.
        field: 'category' or 'difficulty'.
    """
    rows = [['Set', field.capitalize(), 'Questions', 'Accuracy, %', 'Official, %']]
    for name in sorted(sets, key=order):
        for part, found in sets[name][f'by_{field}'].items():
            scores = bounded(found['accuracy']), bounded(found['official'])
            rows.append([label(name), part or '–', str(found['questions']), *scores])
    official = any(row[-1] != '–' for row in rows[1:])
    return rows if official else [row[:-1] for row in rows]


def conduct_rows(sets: Sets) -> Rows:
    """Turns, calls, searches that found something, how trajectories ended, and who said 'right'."""
    rows = [
        ['Set', 'Turns', 'Crops', 'Image searches', 'found, %', 'Text searches', 'found, %',
         'Answered, %', 'Ran out, %', 'Failed, %', 'Matched, %', 'Judge alone, %', 'Exact, %'],
    ]  # fmt: skip
    for name in sorted(sets, key=order):
        found = sets[name]
        calls, searches, ends = found['tool_calls'], found['searches'], found['finishes']
        judge = found['judge']
        out = sum(ends[reason] for reason in ('turns', 'malformed', 'length'))
        failed = sum(ends[reason] for reason in ('tool_failed', 'judge_failed', 'too_long'))
        rows.append(
            [
                label(name),
                number(found['turns']),
                number(calls['image_crop']),
                number(calls['image_search']),
                percent(searches['image_search']['found']),
                number(calls['text_search']),
                percent(searches['text_search']['found']),
                percent(ends['answered']),
                percent(out),
                percent(failed),
                *(percent(judge[part]) for part in ('matched', 'judged_right', 'exact')),
            ]
        )
    return rows


def bounded(bounds: Mapping[str, Any] | None) -> str:
    """A score in per cent, with its interval where there is one."""
    if not bounds or bounds.get('mean') is None:
        return '–'
    ends = bounds.get('low'), bounds.get('high')
    shown = '' if None in ends else f' [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]'
    return f'{100 * bounds["mean"]:.2f}{shown}'


def markdown(rows: Rows) -> str:
    """Rows as a Markdown table; '' for a head alone."""
    if len(rows) < 2:
        return ''
    cells = [[cell.replace('|', r'\|') for cell in row] for row in rows]
    lines = ['| ' + ' | '.join(row) + ' |' for row in cells]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]]) + '\n'


def terminal(rows: Rows, right: Sequence[int] = ()) -> str:
    """Rows in aligned columns; '' for a head alone.

    Args:
        rows: the head first.
        right: numbers of the columns that end, and do not begin, in one line.
    """
    if len(rows) < 2:
        return ''
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return '\n'.join(
        [lines[0].rstrip(), '-' * max(map(len, lines)), *(s.rstrip() for s in lines[1:])]
    )


def _names(runs: Mapping[str, Sets]) -> list[str]:
    return sorted({name for sets in runs.values() for name in sets}, key=order)


def _average(found: Sequence[Mapping[str, Any] | None]) -> str:
    means = [one['pass_at_1']['mean'] if one and one['pass_at_1'] else None for one in found]
    return _plain(None if None in means else 100 * sum(means) / len(means))


def _plain(percent: float | None) -> str:
    return '–' if percent is None else f'{percent:.2f}'


def percent(share: float | None) -> str:
    """A share in per cent, with one digit behind the point."""
    return '–' if share is None else f'{100 * share:.1f}'


def number(value: float | None) -> str:
    """A number with two digits behind the point."""
    return '–' if value is None else f'{value:.2f}'
