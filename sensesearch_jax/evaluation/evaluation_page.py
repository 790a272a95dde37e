"""The page of an evaluation: scores with their harness card, slices, conduct, and trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.benchmarks import label, named_by_set, order
from sensesearch_jax.evaluation.harness_card import card_lines
from sensesearch_jax.evaluation.page import write_page
from sensesearch_jax.evaluation.paper_table import (
    conduct_rows,
    metric_rows,
    paper_rows,
    percent,
    sample_rows,
    slice_rows,
)
from sensesearch_jax.evaluation.trajectory_viewer import MEMBER_COLOURS, ImageLoader, viewer_data

MOST_SAMPLES = 8  # of a question that are drawn beside each other
SHOWN, IMAGE_BUDGET = 80, 12_000_000


def write_evaluation_page(
    path: Path,
    name: str,
    trajectories: Sequence[Trajectory],
    sets: Mapping[str, Mapping[str, Any]],
    card: Mapping[str, Any],
    image_loader: ImageLoader,
    protocol: Protocol,
    command: str,
) -> int:
    """Writes the page and returns its size in bytes.

    Args:
        path: of the HTML file.
        name: of the run.
        trajectories: of all sets, scored.
        sets: name of a set to `set_summary.summarise_set`.
        card: `harness_card.harness_card`.
        image_loader: encoded image file by SHA-256; anything but bytes where there is none.
        protocol: the text form of the trajectories.
        command: that made the run.
    """
    viewer = viewer_data(
        _by_sample(name, named_by_set(trajectories)),
        image_loader,
        protocol,
        shown=SHOWN,
        image_budget=IMAGE_BUDGET,
    )
    headline = [
        {'label': label(of), **sets[of]['pass_at_1']}
        for of in sorted(sets, key=order)
        if sets[of]['pass_at_1']
    ]
    return write_page(
        path,
        'evaluation.html',
        {
            'name': name,
            'headline': headline,
            'colours': MEMBER_COLOURS,
            'tables': [
                ('Pass@1', paper_rows({name: sets})),
                ('Several samples', sample_rows({name: sets})),
                ('Other metrics; the set’s own has a star', metric_rows({name: sets})),
                ('By category', slice_rows(sets, 'category')),
                ('By difficulty', slice_rows(sets, 'difficulty')),
            ],
            'conduct': conduct_rows(sets),
            'card': card_lines(card),
            'system_prompt': card['environment']['system_prompt'],
            'command': command,
        },
        viewer,
        scripts=('trajectory.js', 'trajectory_viewer.js'),
        filters={'percent': percent},
    )


def _by_sample(name: str, trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories by the number of their sample."""
    found: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.member < MOST_SAMPLES:
            found.setdefault(trajectory.member, []).append(trajectory)
    if len(found) == 1:
        return {name: next(iter(found.values()))}
    return {f'sample {member + 1}': found[member] for member in sorted(found)}
