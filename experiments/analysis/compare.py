"""Policies that were evaluated apart on the same questions, item by item: which questions flipped,
and accuracy of each less that of the first, paired.

    python -m experiments.analysis.compare sft=runs/evaluate_sft rl=runs/evaluate_rl [--html=compare.html]

Each argument is a name and a workdir of configs/evaluate.py, or one of its files of trajectories,
evaluation/NAME.jsonl. Prints the differences by set and category and the questions that flipped;
with --html, of two runs, writes a page that also shows both trajectories of a question side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sensesearch_jax.agent.protocol import PROTOCOLS
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.benchmarks import named_by_set
from sensesearch_jax.evaluation.comparison import compare_items, compare_sets
from sensesearch_jax.evaluation.comparison_page import (
    comparison_rows,
    flip_rows,
    write_comparison_page,
)
from sensesearch_jax.evaluation.paper_table import terminal
from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.recipes.session import read_trajectories

PRINTED = 20  # flipped questions of a comparison


def files_of(path: Path) -> list[Path]:
    """Files of trajectories: the path itself, or those of a workdir."""
    return sorted(path.glob('evaluation/*.jsonl')) if path.is_dir() else [path]


def image_file(paths: Sequence[Path], sha256: str) -> bytes | None:
    """An image of the runs' tool servers, by its hash; None where their folders are gone.

    Args:
        paths: workdirs, or files in their folders `evaluation`.
        sha256: its content hash.
    """
    for path in paths:
        workdir = path if path.is_dir() else path.parent.parent
        file = workdir / 'tools' / 'images' / sha256[:2] / sha256
        if file.is_file():
            return file.read_bytes()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='NAME=PATH',
        help='a workdir or a file of trajectories; the first is what the others are compared with',
    )
    parser.add_argument('--html', type=Path, metavar='FILE', help='a page of two runs')
    parser.add_argument('--protocol', choices=sorted(PROTOCOLS), default='default')
    given = parser.parse_args()
    paths = {name: Path(path) for name, _, path in (run.partition('=') for run in given.runs)}
    runs: dict[str, list[Trajectory]] = {
        name: [t for file in files_of(path) for t in read_trajectories(file)]
        for name, path in paths.items()
    }
    if empty := [str(paths[name]) for name, found in runs.items() if not found]:
        parser.error(
            f'no trajectories in {", ".join(empty)}; give NAME=PATH with workdirs of configs/evaluate.py, or '
            'files that it wrote.'
        )
    if given.html and len(runs) != 2:
        parser.error(f'--html shows two runs beside each other, and {len(runs)} are given.')
    first, *others = runs
    as_json = {name: [t.to_json() for t in named_by_set(found)] for name, found in runs.items()}
    print(format_table(summarise(as_json, comparisons=[(name, first) for name in others])))
    for name in others:
        items = compare_items(runs[first], runs[name])
        if not items:
            parser.error(f'{first} and {name} have no question in common.')
        print(f'\n{terminal(comparison_rows(compare_sets(items), first, name))}')
        flips = flip_rows(items, first, name)
        print(f'\n{terminal([[c[:48] for c in row] for row in flips[: PRINTED + 1]])}')
        if len(flips) > PRINTED + 1:
            print(f'… and {len(flips) - PRINTED - 1} more')
    if given.html:
        size = write_comparison_page(
            given.html,
            runs,
            items,
            compare_sets(items),
            lambda sha256: image_file(list(paths.values()), sha256),
            PROTOCOLS[given.protocol],
        )
        print(f'\n{given.html} ({size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
