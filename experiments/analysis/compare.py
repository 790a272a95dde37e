"""Policies that were evaluated apart on the same questions: accuracy of each less that of the
first, paired.

    python -m experiments.analysis.compare sft=runs/sft/evaluation/policy.jsonl rl=runs/rl/evaluation/policy.jsonl [...]

Each argument is a name and a file of trajectories that configs/evaluate.py wrote. Prints the table
of a main job.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sensesearch_jax.evaluation.summary import format_table, summarise
from sensesearch_jax.recipes.session import read_trajectories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='NAME=FILE',
        help='the first is what the others are compared with',
    )
    files = dict(run.partition('=')[::2] for run in parser.parse_args().runs)
    runs = {
        name: [t.to_json() for t in read_trajectories(Path(path))] for name, path in files.items()
    }
    if empty := [files[name] or name for name, found in runs.items() if not found]:
        parser.error(
            f'no trajectories in {", ".join(empty)}; give NAME=FILE with files that configs/evaluate.py wrote.'
        )
    first, *others = runs
    print(format_table(summarise(runs, comparisons=[(name, first) for name in others])))


if __name__ == '__main__':
    main()
