"""Ten questions of a user's own, with their pictures, by fields of the command line alone:
demonstrations, SFT, RL, evaluation."""

import json

import toy_runs
from PIL import Image

from sensesearch_jax.recipes.session import read_trajectories

COLOURS = 'red', 'green', 'blue', 'yellow', 'purple', 'orange', 'white', 'black', 'brown', 'grey'


def write_questions(folder):
    """Of one picture, of two, of none, and with options."""
    (folder / 'pictures').mkdir(parents=True)
    records = []
    for number, colour in enumerate(COLOURS):
        Image.new('RGB', (120, 90), colour).save(folder / 'pictures' / f'{number}.png')
        record = {'id': f'mine-{number}', 'question': 'What colour is it?', 'answers': [colour]}
        records.append(record | {'images': [f'pictures/{number}.png']})
    records[1]['images'].append('pictures/0.png')
    records[2]['images'] = []
    records[3] |= {'choices': ['red', 'yellow'], 'answers': ['B']}
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'my.jsonl').write_text(lines)
    return folder / 'my.jsonl'


def test_ten_questions_from_demonstrations_to_evaluation(policy_folder, tmp_path):
    mine, output = write_questions(tmp_path / 'mine'), tmp_path / 'output.txt'

    def run(config, policy, **fields):
        settings = {name.replace('__', '.'): value for name, value in fields.items()}
        workdir = tmp_path / config
        toy_runs.finish(toy_runs.start(config, workdir, policy, settings, output), output)
        return workdir

    cold = run(
        'cold_start', policy_folder, data__train=mine, expert__kind='references',
        mine__samples=2, mine__answer_tokens=4, mine__most_right=2,
    )  # fmt: skip
    kept = read_trajectories(cold / 'cold_start' / 'kept.jsonl')
    assert {t.question.id: t.answer for t in kept} == {
        f'mine-{n}': 'B' if n == 3 else colour for n, colour in enumerate(COLOURS)
    }
    assert sorted(len(t.own_images) for t in kept) == [0] + [1] * 8 + [2]
    sft = run(
        'sft', policy_folder, sft__data=cold / 'cold_start' / 'kept.jsonl',
        tools__folder=cold / 'tools', sft__micro_batch=1, sft__threads=1,
    )  # fmt: skip
    rl = run(
        'rl', sft / 'sft' / 'policy', data__rl=mine, rl__steps=2, rl__questions_per_step=5,
        rl__micro_batch=1, rl__threads=1,
    )  # fmt: skip
    asked = [
        {t.question.id for t in read_trajectories(rl / 'rl' / 'trajectories' / f'{step:05d}.jsonl')}
        for step in range(2)
    ]
    assert len(asked[0]) == len(asked[1]) == 5 and len(asked[0] | asked[1]) == 10
    evaluated = run('evaluate', rl / 'rl' / 'policy', data__eval=mine, evaluate__lanes=2)
    found = read_trajectories(evaluated / 'evaluation' / 'policy.jsonl')
    assert {t.question.id for t in found} == {f'mine-{n}' for n in range(10)}
    assert {t.question.source for t in found} == {'my'}
