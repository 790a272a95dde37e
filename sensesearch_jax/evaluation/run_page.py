"""The page of a training run: its alarms, learning curves, trajectories and configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.curves import curve_sections
from sensesearch_jax.evaluation.forest import FILTERS
from sensesearch_jax.evaluation.page import duration, flat_fields, write_page
from sensesearch_jax.evaluation.trajectory_viewer import ImageLoader, viewer_data

SHOWN, IMAGE_BUDGET = 40, 8_000_000


def write_run_page(
    path: Path,
    title: str,
    *,
    metrics: Sequence[Mapping[str, Any]],
    alarms: Iterable[Mapping[str, Any]],
    trajectories: Mapping[str, Sequence[Trajectory]],
    about: str,
    image_loader: ImageLoader,
    protocol: Protocol,
    config: Mapping[str, Any],
    machine: str,
    command: str,
) -> int:
    """Writes the page and returns its size in bytes.

    Args:
        path: of the HTML file.
        title: of the page.
        metrics: records of metrics.jsonl.
        alarms: lines of alarms.jsonl.
        trajectories: by the name that they are shown under.
        about: which trajectories these are, in a sentence.
        image_loader: encoded image file by SHA-256; anything but bytes where there is none.
        protocol: the text form of the trajectories.
        config: of the run.
        machine: that it ran on, in words.
        command: that made it.
    """
    viewer = viewer_data(
        trajectories, image_loader, protocol, shown=SHOWN, image_budget=IMAGE_BUDGET
    )
    viewer['first'] = viewer['runs'][:1]
    times = [record['time'] for record in metrics]
    last = metrics[-1] if metrics else None
    facts = [machine]
    if last:
        facts = [
            datetime.fromtimestamp(last['time']).date().isoformat(),
            *facts,
            f'{last["step"]} steps',
            f'{duration(times[-1] - times[0])} from the first to the last',
        ]
    return write_page(
        path,
        'run.html',
        {
            'title': title,
            'facts': facts,
            'alarms': [dict(line) for line in alarms],
            'sections': curve_sections(metrics),
            'about': about,
            'choice': 'Sample',
            'config': list(flat_fields(config)),
            'command': command,
        },
        viewer,
        scripts=('curves.js', 'trajectory.js', 'trajectory_viewer.js'),
        filters=FILTERS,
    )
