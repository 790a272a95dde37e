"""Stages at which a run loses right answers: at the box, the search, the passage or the reading.

    python -m experiments.analysis.lost_answers --run=runs/pocket --policy=sft

reads the trajectories of an evaluation (workdir/evaluation/<policy>.jsonl) and prints tables: of
questions that need a search, how many come how far, by category and by fact; of perception, how many
of each kind are right, and would be by one answer to all; and of searches that begin with a crop, what
the first box was worth. All but the last are in the run's report.html as well.
"""

from pathlib import Path

from absl import app, flags

from experiments.benchmarks.work import markdown
from sensesearch_jax.pocket.lost_answers import BOXES, first_boxes, seen, stages, stages_by_fact
from sensesearch_jax.recipes.session import read_trajectories

RUN = flags.DEFINE_string('run', 'runs/pocket', 'workdir of a run that has been evaluated')
POLICY = flags.DEFINE_string('policy', 'sft', 'whose evaluation: base, sft or rl')


def main(_) -> None:
    path = Path(RUN.value) / 'evaluation' / f'{POLICY.value}.jsonl'
    trajectories = list(read_trajectories(path))
    if not trajectories:
        raise app.UsageError(
            f'{path} holds no trajectories; give the workdir of a finished run and base, sft or rl.'
        )
    (boxes, right), levels = first_boxes(trajectories), '123'
    rows = [
        [kind, *(f'{right[kind, level]} of {boxes[kind, level]}' for level in levels)]
        for kind in BOXES
    ]
    steps = 'asked', 'object found', 'and the fact shown', 'answered right'
    for columns, lines in (
        (('questions', *steps), [[name, *row] for name, row in stages(trajectories).items()]),
        (('fact', *steps), [[name, *row] for name, row in stages_by_fact(trajectories).items()]),
        (
            ('perception', 'asked', 'right by one answer', 'looked nearer', 'answered right'),
            [[kind, *row] for kind, row in seen(trajectories).items()],
        ),
        (('first box', *(f'level {level}: answered right' for level in levels)), rows),
    ):
        print(*markdown(columns, lines), '', sep='\n')


if __name__ == '__main__':
    app.run(main)
