"""The page of two runs side by side: what flipped, and both trajectories of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.benchmarks import label, named_by_set
from sensesearch_jax.evaluation.comparison import GAINED, LOST, OUTCOMES
from sensesearch_jax.evaluation.page import write_page
from sensesearch_jax.evaluation.trajectory_viewer import ImageLoader, script_json, viewer_data

SHOWN, IMAGE_BUDGET = 80, 12_000_000
COLOURS = ('sft', 'rl')


def comparison_rows(
    sets: Mapping[str, Mapping[str, Any]], first: str, second: str
) -> list[list[str]]:
    """The numbers of `comparison.compare_sets` as a table, its head first.

    Args:
        sets: by name.
        first: name of the run that is compared with.
        second: name of the other run.
    """
    rows = [['Set', 'Questions', f'{first}, %', f'{second}, %', 'Difference, points', *OUTCOMES]]
    for name, found in sets.items():
        ends = [found['difference'][end] for end in ('mean', 'low', 'high')]
        shown = f'{100 * ends[0]:+.2f}'
        if None not in ends[1:]:
            shown += f' [{100 * ends[1]:+.1f}, {100 * ends[2]:+.1f}]'
        scores = (f'{100 * found[run]:.2f}' for run in ('first', 'second'))
        counts = (str(found[outcome]) for outcome in OUTCOMES)
        shown = shown.replace('-', '−')
        rows.append([label(name), str(found['questions']), *scores, shown, *counts])
    return rows


def flip_rows(items: Sequence[Mapping[str, Any]], first: str, second: str) -> list[list[str]]:
    """The questions that flipped, as a table, its head first.

    Args:
        items: of `comparison.compare_items`.
        first: name of the run that is compared with.
        second: name of the other run.
    """
    rows = [['Outcome', 'Set', 'Question', 'Reference', first, second, 'Change']]
    for item in items:
        if item['outcome'] in (GAINED, LOST):
            answers = ('–' if answer is None else answer[:200] for answer in item['answers'])
            said = f'{item["question"][:300]} ({item["id"]})'
            reference = ' / '.join(item['references'])[:200]
            change = f'{item["change"]:+.2f}'.replace('-', '−')
            rows.append([item['outcome'], label(item['set']), said, reference, *answers, change])
    return rows


def write_comparison_page(
    path: Path,
    runs: Mapping[str, Sequence[Trajectory]],
    items: Sequence[Mapping[str, Any]],
    sets: Mapping[str, Mapping[str, Any]],
    image_loader: ImageLoader,
    protocol: Protocol,
) -> int:
    """Writes the page and returns its size in bytes.

    Args:
        path: of the HTML file.
        runs: the two runs by name, the one that is compared with first.
        items: of `comparison.compare_items`.
        sets: of `comparison.compare_sets`.
        image_loader: encoded image file by SHA-256; anything but bytes where there is none.
        protocol: the text form of the trajectories.
    """
    first, second = runs
    shown = {name: named_by_set(found) for name, found in runs.items()}
    viewer = viewer_data(shown, image_loader, protocol, shown=SHOWN, image_budget=IMAGE_BUDGET)
    viewer['labels'] = {}
    viewer['colours'] = dict(zip(runs, COLOURS, strict=True))
    return write_page(
        path,
        'comparison.html',
        {
            'first': first,
            'second': second,
            'sets': comparison_rows(sets, first, second),
            'flips': flip_rows(items, first, second),
            'shown': len(viewer['questions']),
            'total': viewer['total'],
            'viewer': Markup(script_json(viewer)),
        },
        scripts=('trajectory_viewer.js',),
        filters={},
    )
