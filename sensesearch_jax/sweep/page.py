"""The page of a sweep: accuracy over seeds, paired differences, training curves, what flipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation import curves
from sensesearch_jax.evaluation.benchmarks import named_by_set
from sensesearch_jax.evaluation.forest import (
    FILTERS,
    PERCENT_TICKS,
    difference_chart,
    interval_place,
)
from sensesearch_jax.evaluation.page import write_page
from sensesearch_jax.evaluation.trajectory_viewer import ImageLoader, viewer_data
from sensesearch_jax.sweep.items import compare_items, flip_rows, outcome_rows
from sensesearch_jax.sweep.tables import (
    TRAINING,
    conduct_rows,
    part_label,
    seed_rows,
    training_rows,
)

COLOURS = 'sft', 'rl', 'other1', 'other0', 'other2', 'base', *(f'other{i}' for i in range(3, 7))
SHOWN, IMAGE_BUDGET = 80, 12_000_000
FEW = 3  # settings, of which all differences are shown at once


def write_sweep_page(
    path: Path,
    title: str,
    summary: Mapping[str, Any],
    pair: Mapping[str, Sequence[Trajectory]],
    image_loader: ImageLoader,
    protocol: Protocol,
    command: str,
) -> int:
    """Writes the page and returns its size in bytes.

    Args:
        path: of the HTML file.
        title: of the page.
        summary: of `results.summarise_sweep`.
        pair: trajectories of all seeds of two settings, which are shown item by item; {} shows none.
        image_loader: encoded image file by SHA-256; anything but bytes where there is none.
        protocol: the text form of the trajectories.
        command: that made the sweep.
    """
    colours = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(summary['settings'])}

    def named(text):
        return text if text in colours else _label(text)

    runs = {name: named_by_set(found) for name, found in pair.items()}
    viewer = viewer_data(runs, image_loader, protocol, shown=SHOWN, image_budget=IMAGE_BUDGET)
    viewer['colours'] = {name: colours[name] for name in runs}
    items = compare_items(*pair.values()) if pair else []
    sizes = [
        s['accuracy']['overall']['questions'] for s in summary['settings'].values() if s['accuracy']
    ]
    return write_page(
        path,
        'sweep.html',
        {
            'title': title,
            'command': command,
            'settings': [
                {'label': name, 'colour': colours[name], 'seeds': len(s['seeds'])}
                for name, s in summary['settings'].items()
            ],
            'runs': sum(len(s['seeds']) for s in summary['settings'].values()),
            'questions': max(sizes, default=0),
            'unfinished': summary['unfinished'],
            'percent_ticks': PERCENT_TICKS,
            'confidence': f'{summary["confidence"]:.0%}',
            'resamples': summary['resamples'],
            'forest': forest(summary, colours),
            'by_seed': seed_rows(summary),
            'differences': [difference_chart(found, named) for found in differences(summary)],
            'conduct': conduct_rows(summary),
            'sections': [training_section(summary, stage, colours) for stage in summary['curves']],
            'pair': list(pair),
            'outcomes': outcome_rows(items, *pair) if pair else [],
            'flips': flip_rows(items, *pair) if pair else [],
        },
        viewer,
        scripts=('curves.js', 'trajectory.js', 'trajectory_viewer.js'),
        filters=FILTERS,
    )


def differences(summary: Mapping[str, Any]) -> tuple[list[Mapping], list[Mapping]]:
    """The differences that are looked for first, and the others, which the page folds: of many settings
    those from the first one, of few all.
    """
    found, first = summary['differences'], next(iter(summary['settings']), None)
    if len(summary['settings']) <= FEW:
        return found, []
    return [d for d in found if d['b'] == first], [d for d in found if d['b'] != first]


def forest(summary: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Accuracy with its interval by part of the questions, a row per setting."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, setting in summary['settings'].items():
        for part, found in setting['accuracy'].items():
            bounds = {end: found[end] for end in ('mean', 'low', 'high')}
            row = {'label': name, 'colour': colours[name], 'n': found['questions']}
            groups.setdefault(part, []).append(row | interval_place(bounds))
    return [{'label': _label(part), 'rows': rows} for part, rows in groups.items()]


def training_section(
    summary: Mapping[str, Any], stage: str, colours: Mapping[str, str]
) -> dict[str, Any]:
    """The charts of a stage: one a metric, a curve with its band a setting.

    Args:
        summary: of `results.summarise_sweep`.
        stage: of the runs' metrics.
        colours: CSS class by setting.

    Returns:
        As `curves.curve_sections` gives them; `table` has the means of the later steps.
    """
    found = summary['curves'][stage]
    declared = {
        metric: dataclasses.replace(
            chart, title=': '.join(filter(None, [chart.title, text])), metrics={metric: ''}
        )
        for chart in curves.CHARTS.get(stage, ())
        for metric, text in chart.metrics.items()
    }
    order = [m for m in declared if m in found] + sorted(m for m in found if m not in declared)
    drawn = {
        m: band_chart(declared.get(m, curves.Chart(m, {m: ''})), found[m], colours) for m in order
    }
    first = [m for m in order if m in TRAINING.get(stage, ()) or m.startswith('accuracy/')]
    return {
        'stage': stage,
        'charts': [drawn[m] for m in first],
        'others': [drawn[m] for m in order if m not in first],
        'table': training_rows(summary, stage) if stage in TRAINING else [],
    }


def band_chart(
    chart: curves.Chart,
    series: Mapping[str, Mapping[str, Sequence[float]]],
    colours: Mapping[str, str],
) -> dict[str, Any]:
    """Coordinates of one metric's chart.

    Args:
        chart: title, unit and axis.
        series: by setting {'steps', 'mean', 'low', 'high'}.
        colours: CSS class by setting.
    """
    ends = np.concatenate([[*s['low'], *s['high']] for s in series.values()])
    low, high = curves.axis(ends, chart)
    first = min(s['steps'][0] for s in series.values())
    last = max(s['steps'][-1] for s in series.values())

    def line(steps: Sequence[float], values: Sequence[float]) -> str:
        return curves.points(np.array(steps), np.asarray(values), first, last, low, high)

    found = []
    for name, s in series.items():
        smoothed = curves.smooth(s['mean'], len(s['mean']) / 40 if chart.smoothed else 0)
        there = f'{line(s["steps"], s["high"])} {line(s["steps"][::-1], s["low"][::-1])}'
        data = {'label': name, 'steps': [round(x) for x in s['steps']], 'raw': s['mean']}
        found.append(
            {
                'label': name,
                'colour': colours[name],
                'band': there if s['low'] != s['high'] else '',
                'last': float(smoothed[-1]),
                'raw': line(s['steps'], s['mean']),
                'smooth': line(s['steps'], smoothed),
                'data': data | {'smooth': [float(f'{v:.4g}') for v in smoothed]},
            }
        )
    return curves.chart_frame(chart, (low, high), (first, last)) | {'curves': found}


def _label(part: str) -> str:
    """A part of the questions as a head; a set's own name stays as it is."""
    if part == 'overall':
        return 'All questions'
    return part_label(part).capitalize() if part.islower() else part
