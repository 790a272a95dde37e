"""Ten questions of a user's own, by fields of the command line alone: looked at, demonstrated, SFT, RL,
evaluated."""

import pytest
from workspace import COLOURS

from sensesearch_jax.recipes.session import read_trajectories


@pytest.mark.commands(
    'README.md',
    'configs/cold_start.py',
    'configs/sft.py',
    'configs/rl.py --workdir',
    'configs/evaluate.py',
)
def test_ten_questions_from_demonstrations_to_evaluation(workspace):
    workspace.run('configs/cold_start.py')
    kept = read_trajectories(workspace / 'runs/cold/cold_start/kept.jsonl')
    assert {t.question.id: t.answer for t in kept} == {
        f'mine-{n}': 'B' if n == 3 else colour for n, colour in enumerate(COLOURS)
    }
    assert sorted(len(t.own_images) for t in kept) == [0] + [1] * 8 + [2]
    workspace.run('configs/sft.py')
    assert (workspace / 'runs/sft/report.html').is_file()
    workspace.run('configs/rl.py', {'rl.questions_per_step': 5})
    asked = [
        {
            t.question.id
            for t in read_trajectories(workspace / f'runs/rl/rl/trajectories/{step:05d}.jsonl')
        }
        for step in range(2)
    ]
    assert len(asked[0]) == len(asked[1]) == 5 and len(asked[0] | asked[1]) == 10
    said = workspace.run('configs/evaluate.py')
    found = read_trajectories(workspace / 'runs/evaluate/evaluation/policy.jsonl')
    assert {t.question.id for t in found} == {f'mine-{n}' for n in range(10)}
    assert {t.question.source for t in found} == {'my'} and 'Pass@1' in said
