"""The page a person reads after a run: one HTML file with results, learning curves and
trajectories.

The page loads nothing: style, scripts, charts and pictures are inline, and a content security
policy in its head allows only these scripts, so that text from tools stays text whatever it holds.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import SampleState, Trajectory
from sensesearch_jax.evaluation.curves import curve_sections
from sensesearch_jax.evaluation.forest import (
    FILTERS,
    PERCENT_TICKS,
    difference_chart,
    interval_place,
)
from sensesearch_jax.evaluation.page import bars, duration, flat_fields, write_page
from sensesearch_jax.evaluation.paper_table import percent
from sensesearch_jax.evaluation.summary import COUNTED, category_order
from sensesearch_jax.evaluation.trajectory_viewer import ImageLoader, viewer_data
from sensesearch_jax.pocket.lost_answers import seen, stages, stages_by_fact

_LABELS = {
    'base': 'Base', 'sft': 'SFT', 'rl': 'RL', 'search': 'Search', 'perception': 'Perception',
    'search_only': 'Search only', 'overall': 'All categories', 'image_crop': 'Crop',
    'image_search': 'Image search', 'text_search': 'Text search',
    'infra_failed': 'infrastructure failed', 'too_long': 'too long',
}  # fmt: skip
_TOOL_ORDER = ('image_crop', 'image_search', 'text_search')
_MAIN_RUNS = ('base', 'sft', 'rl')
_OTHER_COLOURS = 3


@dataclass(frozen=True)
class ReportMeta:
    """The run itself, as the page describes it; everything is optional."""

    title: str = 'A small agent that zooms, searches and answers'
    date: str = ''
    machine: str = ''
    command: str = ''
    config: Mapping[str, Any] = field(default_factory=dict)  # flat or nested, shown as name = value
    # stage to seconds, in the order they ran
    durations: Mapping[str, float] = field(default_factory=dict)
    # cold start: stage to questions left, falling
    funnel: Mapping[str, int] = field(default_factory=dict)
    # reason to number of rejected trajectories
    rejections: Mapping[str, int] = field(default_factory=dict)


def write_report(
    path: str | Path,
    summary: Mapping[str, Any],
    metrics: Iterable[Mapping[str, Any]],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    image_loader: ImageLoader,
    meta: ReportMeta = ReportMeta(),
    *,
    protocol: Protocol,
    shown: int = 60,
    image_budget: int = 11_000_000,
) -> int:
    """Writes the report.

    Args:
      path: of the HTML file; its folder must exist.
      summary: what `summary.summarise` gave for these runs.
      metrics: records of metrics.jsonl, see `curves.curve_sections`.
      runs: run name to trajectories as `Trajectory.to_json` gives them.
      image_loader: encoded image file by SHA-256; what is not bytes counts as a picture that is not
          there.
      meta: about the run.
      protocol: the text form the trajectories were sampled with.
      shown: questions in the viewer at most.
      image_budget: bytes for all pictures in the page, as base64; if they need more, fewer
        questions are shown.

    Returns:
      Size of the file in bytes.

    Raises:
      ValueError: `shown` is negative, or `summary` is not about the same runs.
    """
    if shown < 0:
        raise ValueError(f'shown must be 0 or more, got {shown}.')
    if set(summary['runs']) != set(runs):
        raise ValueError(
            f'the summary is about {sorted(summary["runs"])} but the runs are {sorted(runs)}.'
        )
    parsed = {
        name: [Trajectory.from_json(dict(t)) for t in trajectories]
        for name, trajectories in runs.items()
    }
    viewer = viewer_data(parsed, image_loader, protocol, shown=shown, image_budget=image_budget)
    colours = _colours(list(runs))
    viewer['labels'] = {
        name: _label(name) for name in [*runs, *{q['category'] for q in viewer['questions']}]
    }
    viewer['colours'] = colours
    return write_page(
        path,
        'report.html',
        {
            'meta': meta,
            'config': list(flat_fields(meta.config)),
            'total_time': duration(sum(meta.durations.values())),
            'durations': bars(meta.durations, duration),
            'size': _size(summary),
            'headline': _headline(summary, colours),
            'percent_ticks': PERCENT_TICKS,
            'forest': _forest(summary, colours),
            'difficulties': _difficulty_forest(summary, colours),
            'differences': difference_chart(summary['differences'], _label),
            'conduct': _conduct(summary, colours),
            'tools': _tools(summary, colours),
            'stages': _by_kind(parsed, colours, stages),
            'facts': _by_kind(parsed, colours, stages_by_fact),
            'seen': _by_kind(parsed, colours, seen),
            'runs': [{'label': _label(name), 'colour': colours[name]} for name in runs],
            'funnel': bars(meta.funnel, str),
            'rejections': bars(dict(Counter(meta.rejections).most_common()), str),
            'sections': curve_sections(
                m for m in metrics if not m['stage'].startswith('evaluate ')
            ),
            'confidence': f'{summary["confidence"]:.0%}',
            'summary': summary,
        },
        viewer,
        scripts=('curves.js', 'trajectory.js', 'trajectory_viewer.js'),
        filters=FILTERS,
    )


def _label(name: str) -> str:
    return _LABELS.get(name) or (
        'RL' + name[2:] if name.startswith('rl ') else name[:1].upper() + name[1:]
    )


def _colours(names: Sequence[str]) -> dict[str, str]:
    """CSS class per run: the stages of the method always look the same."""
    others = [name for name in names if name not in _MAIN_RUNS]
    return {
        name: name if name in _MAIN_RUNS else f'other{others.index(name) % _OTHER_COLOURS}'
        for name in names
    }


# ---- sections ----


def _size(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of the largest run: how many questions and pictures, and per category."""
    run = max(summary['runs'].values(), key=lambda run: run['overall']['questions'], default=None)
    if run is None:
        return {'questions': 0, 'pictures': 0, 'categories': []}
    return {
        'questions': run['overall']['questions'],
        'pictures': run['overall']['pictures'],
        'categories': [
            (_label(category).lower(), block['questions'])
            for category, block in run['by_category'].items()
        ],
    }


def _headline(summary: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Overall accuracy of the main runs, or of all if none of them is there."""
    names = [name for name in summary['runs'] if name in _MAIN_RUNS] or list(summary['runs'])
    return [
        {
            'label': _label(name),
            'colour': colours[name],
            **summary['runs'][name]['overall']['accuracy'],
        }
        for name in names
        if summary['runs'][name]['overall']['accuracy']
    ]


def _forest(summary: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Accuracy with intervals by category; 'overall' first, for runs over more than one."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, run in summary['runs'].items():
        overall = {'overall': run['overall']} if len(run['by_category']) > 1 else {}
        for category, block in {**overall, **run['by_category']}.items():
            groups.setdefault(category, []).append(_interval_row(name, block, colours))
    order = sorted(groups, key=lambda category: (category != 'overall', category_order(category)))
    return [
        {'label': _label(category), 'rows': [row for row in groups[category] if row]}
        for category in order
    ]


def _difficulty_forest(
    summary: Mapping[str, Any], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, run in summary['runs'].items():
        for category, by_difficulty in run['by_category_and_difficulty'].items():
            for difficulty, block in by_difficulty.items():
                groups.setdefault((category, difficulty), []).append(
                    _interval_row(name, block, colours)
                )
    return [
        {
            'label': f'{_label(category)}, difficulty {difficulty}',
            'rows': [row for row in groups[category, difficulty] if row],
        }
        for category, difficulty in sorted(
            groups, key=lambda group: (category_order(group[0]), group[1])
        )
    ]


def _interval_row(
    name: str, block: Mapping[str, Any], colours: Mapping[str, str]
) -> dict[str, Any] | None:
    if not block['accuracy']:
        return None
    bounds = block['accuracy']
    return {
        'label': _label(name),
        'colour': colours[name],
        'n': block['counted'],
        **interval_place(bounds),
    }


def _conduct(summary: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Table of the policies' conduct: one row per category and run."""
    counted = {state.value for state in COUNTED}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, run in summary['runs'].items():
        for category, block in run['by_category'].items():
            lost = [
                f'{percent(share)} % {_LABELS.get(state, state)}'
                for state, share in block['states'].items()
                if share and state not in counted
            ]
            groups.setdefault(category, []).append(
                {
                    'label': _label(name),
                    'colour': colours[name],
                    'format': block['format'],
                    'turns': block['turns'],
                    'searches': block['searches'],
                    'found': block['search_success'],
                    'wait': block['tool_wait_s'],
                    'truncated': block['states'].get(SampleState.TRUNCATED.value, 0),
                    'lost': ', '.join(lost),
                }
            )
    return [
        {'label': _label(category), 'rows': groups[category]}
        for category in sorted(groups, key=category_order)
    ]


def _by_kind(
    runs: Mapping[str, Sequence[Trajectory]],
    colours: Mapping[str, str],
    count: Callable[[Sequence[Trajectory]], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Counts of `lost_answers`: one row per kind of question and run."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, trajectories in runs.items():
        for kind, row in count(trajectories).items():
            groups.setdefault(kind, []).append(
                {'label': _label(name), 'colour': colours[name], 'counts': row}
            )
    return [{'label': _label(kind), 'rows': rows} for kind, rows in groups.items()]


def _tools(summary: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    """Calls per trajectory by category and tool: a dot per run, and a line from SFT to RL, on one axis
    from 0.
    """
    names = list(summary['runs'])
    calls = {
        (category, tool, name): block['tool_calls'][tool]
        for name, run in summary['runs'].items()
        for category, block in run['by_category'].items()
        if block['tool_calls']
        for tool in _TOOL_ORDER
        if tool in block['tool_calls']
    }
    limit = max(1, math.ceil(max(calls.values(), default=1)))
    groups = []
    for category in sorted({category for category, _, _ in calls}, key=category_order):
        rows = []
        for tool in _TOOL_ORDER:
            of_runs = {
                name: calls[category, tool, name]
                for name in names
                if (category, tool, name) in calls
            }
            # Each run has its own height within the row, so that equal values do not hide one
            # another.
            dots = {
                n: {
                    'run': _label(n),
                    'colour': colours[n],
                    'value': v,
                    'x': 100 * v / limit,
                    'y': 100 * (names.index(n) + 1) / (len(names) + 1),
                }
                for n, v in of_runs.items()
            }
            change = [dots[name] for name in ('sft', 'rl') if name in dots]
            rows.append(
                {
                    'label': _label(tool),
                    'dots': list(dots.values()),
                    'change': change if len(change) == 2 else None,
                }
            )
        groups.append({'label': _label(category), 'rows': rows})
    step = -(-limit // 6)
    ticks = [
        {'x': 100 * i / limit, 'text': str(i), 'minor': False} for i in range(0, limit + 1, step)
    ]
    return {'groups': groups, 'ticks': ticks}
