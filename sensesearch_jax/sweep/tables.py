"""The figures of a sweep as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensesearch_jax.evaluation.paper_table import Rows, bounded, markdown, terminal

TRAINING = {
    'rl': {
        'reward': 'Reward',
        'accuracy': 'Accuracy',
        'grad_norm': 'Gradient norm',
        'ratio': 'Ratio',
        'ratio_max': 'Largest ratio',
        'clip_ratio': 'Clipped',
        'entropy': 'Entropy',
        'frac_reward_zero_std': 'Groups without spread',
        'batch_gain': 'Batch gain',
        'truncated': 'Truncated',
        'tool_cost': 'Price of calls',
        'tool_calls/image_crop': 'Crops',
        'tool_calls/image_search': 'Image searches',
        'tool_calls/text_search': 'Text searches',
        'turns': 'Turns',
        'response_length': 'Response tokens',
    },
    'sft': {'loss': 'Loss', 'grad_norm': 'Gradient norm', 'entropy': 'Entropy'},
}
"""Metrics of training that the tables have, by stage, with their heads."""


def part_label(part: str) -> str:
    """A part of the questions as a head: 'search only'."""
    return 'all' if part == 'overall' else part.replace('_', ' ') or 'other'


def accuracy_rows(summary: Mapping[str, Any]) -> Rows:
    """Accuracy of each setting by part of the questions, with its interval."""
    parts = _parts(summary)
    rows = [['Setting', *(f'{part_label(part)}, %' for part in parts), 'Questions', 'Seeds']]
    for name, setting in summary['settings'].items():
        if accuracy := setting['accuracy']:
            cells = [bounded(accuracy.get(part)) for part in parts]
            overall = accuracy['overall']
            rows.append([name, *cells, str(overall['questions']), str(len(overall['by_seed']))])
    return rows


def seed_rows(summary: Mapping[str, Any]) -> Rows:
    """Accuracy of each seed of the settings that have several."""
    parts = _parts(summary)
    rows = [['Setting', 'Seed', *(f'{part_label(part)}, %' for part in parts)]]
    for name, setting in summary['settings'].items():
        of_seeds = [setting['accuracy'].get(part, {}).get('by_seed', {}) for part in parts]
        for seed in of_seeds[0] if of_seeds and len(of_seeds[0]) > 1 else ():
            cells = [f'{100 * found[seed]:.2f}' if seed in found else '–' for found in of_seeds]
            rows.append([name, seed, *cells])
    return rows


def difference_rows(summary: Mapping[str, Any]) -> Rows:
    """Paired differences of every two settings, in points; a star where the interval has no zero."""
    found = summary['differences']
    parts = list(dict.fromkeys(d['category'] for d in found))
    rows = [['Difference, points', *map(part_label, parts), 'Pairs of seeds']]
    for a, b in dict.fromkeys((d['a'], d['b']) for d in found):
        of_pair = {d['category']: d for d in found if (d['a'], d['b']) == (a, b)}
        cells = [_points(of_pair[part]) if part in of_pair else '–' for part in parts]
        rows.append([f'{a} − {b}', *cells, str(of_pair['overall']['seeds'])])
    return rows


def conduct_rows(summary: Mapping[str, Any]) -> Rows:
    """Table of the evaluated policies' conduct."""
    found = {n: s['conduct'] for n, s in summary['settings'].items() if s['conduct']}
    heads = {
        'format': 'Well-formed, %', 'truncated': 'Truncated, %', 'turns': 'Turns',
        'tool_calls/image_crop': 'Crops', 'tool_calls/image_search': 'Image searches',
        'tool_calls/text_search': 'Text searches', 'response_length': 'Response tokens',
    }  # fmt: skip
    rows = [['Setting', *heads.values()]]
    for name, conduct in found.items():
        scale = {'format': 100, 'truncated': 100}
        rows.append([name, *(f'{scale.get(k, 1) * conduct[k]:.2f}' for k in heads)])
    return rows


def training_rows(summary: Mapping[str, Any], stage: str) -> Rows:
    """Means over the last third of a stage's steps, with the lowest and highest seed."""
    of_settings = {n: s['training'].get(stage, {}) for n, s in summary['settings'].items()}
    metrics = [m for m in TRAINING[stage] if any(m in found for found in of_settings.values())]
    rows = [['Setting', *(TRAINING[stage][metric] for metric in metrics)]]
    for name, found in of_settings.items():
        if found:
            rows.append([name, *(_spread(found.get(metric)) for metric in metrics)])
    return rows


def sections(summary: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Titles and rows of all tables that have any."""
    level = f'{summary["confidence"]:.0%}'
    of_training = [
        (f'{stage.upper()}: means over the last third of the steps (lowest and highest seed)', rows)
        for stage in TRAINING
        for rows in [training_rows(summary, stage)]
    ]
    every = [
        (f'Accuracy, with {level} intervals over seeds and questions', accuracy_rows(summary)),
        ('Each seed', seed_rows(summary)),
        ('Paired differences', difference_rows(summary)),
        ('Conduct in the evaluation', conduct_rows(summary)),
        *of_training,
    ]
    return [(title, rows) for title, rows in every if len(rows) > 1]


def as_markdown(title: str, command: str, summary: Mapping[str, Any]) -> str:
    """All tables as a page of Markdown.

    Args:
        title: of the page.
        command: that made the sweep.
        summary: of `results.summarise_sweep`.
    """
    parts = [f'## {head}\n\n{markdown(rows)}' for head, rows in sections(summary)]
    return f'# {title}\n\n    {command}\n\n' + '\n'.join(parts)


def printed(summary: Mapping[str, Any]) -> str:
    """All tables for a terminal."""
    return '\n\n'.join(f'{head}\n{terminal(rows)}' for head, rows in sections(summary))


def _parts(summary: Mapping[str, Any]) -> list[str]:
    settings = summary['settings'].values()
    return list(dict.fromkeys(part for setting in settings for part in setting['accuracy']))


def _points(found: Mapping[str, Any]) -> str:
    ends = [found[end] for end in ('mean', 'low', 'high')]
    text = f'{100 * ends[0]:+.2f}'
    if None not in ends[1:]:
        decided = ends[1] > 0 or ends[2] < 0
        text += f' [{100 * ends[1]:+.1f}, {100 * ends[2]:+.1f}]' + ('*' if decided else '')
    return text.replace('-', '−')


def _spread(found: Mapping[str, float] | None) -> str:
    if not found:
        return '–'
    mean, low, high = (f'{found[end]:.3g}' for end in ('mean', 'low', 'high'))
    return (mean if low == high else f'{mean} ({low}–{high})').replace('-', '−')
