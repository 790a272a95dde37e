"""Several sets in one command: a section, a metric and a card line for each."""

import json

import toy_runs
from scripted_tools import noise_file


def write_set(path, name, records):
    """A file in the plain format, its pictures beside it."""
    for number, record in enumerate(records):
        image = f'{name}{number}.png'
        noise_file(path.parent / image, 320, 240, number)
        records[number] = {'id': f'q{number}', 'image': image, 'source': name} | record
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path)


def test_two_sets_have_a_section_each(policy_folder, tmp_path):
    search = write_set(
        tmp_path / 'search.jsonl',
        'hr_mmsearch',
        [
            {'question': 'Which team is it?', 'answers': ['this'], 'category': 'sports', 'difficulty': 'hard'},
            {'question': 'Which game is it?', 'answers': ['that'], 'category': 'games', 'difficulty': 'easy'},
        ],
    )  # fmt: skip
    letters = write_set(
        tmp_path / 'letters.jsonl',
        'hr_bench_4k',
        [
            {'question': 'Which colour?', 'choices': options, 'answers': ['red'], 'truth': {'group': 'g'}}
            for options in (['red', 'blue'], ['blue', 'red'])
        ],
    )  # fmt: skip
    output, workdir = tmp_path / 'output.txt', tmp_path / 'run'
    settings = {'data.eval': f'{search},{letters}', 'evaluate.lanes': 2}
    toy_runs.finish(toy_runs.start('evaluate', workdir, policy_folder, settings, output), output)
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert [row['set'] for row in rows] == ['hr_mmsearch'] * 2 + ['hr_bench_4k'] * 2
    assert len({row['id'] for row in rows}) == 4  # though both sets name theirs q0 and q1
    sets = json.loads((workdir / 'summary.json').read_text())['sets']
    assert list(sets) == ['hr_mmsearch', 'hr_bench_4k']
    assert list(sets['hr_mmsearch']['by_difficulty']) == ['easy', 'hard']
    assert sets['hr_bench_4k']['official'] == 'hr_bench'
    assert sets['hr_bench_4k']['gold_letters'] == {'A': 0.5, 'B': 0.5}
    assert len({tuple(row['cluster']) for row in rows[2:]}) == 1  # two orders of one question
    for text in ((workdir / 'table.md').read_text(), output.read_text()):
        assert 'HR-MMSearch' in text and 'HR-Bench 4K' in text and 'paper: SenseSearch, RL' in text
        assert '2 questions of the 305 that the paper reports' in text
        assert 'right option at A 50 % B 50 %' in text
    page = (workdir / 'viewer.html').read_text()
    assert 'HR-MMSearch: sports' in page and '"category":"HR-Bench 4K"' in page
