"""Two settings item by item: which questions flipped, and by how much; the command that compares runs."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import PICTURE, answered, found, question
from PIL import Image

from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.sweep.items import compare_items, outcome_counts

ROOT = Path(__file__).parents[2]


def run(*said, source='hr_mmsearch', **fields):
    return [answered(question(i, source), s, turns=[found()], **fields) for i, s in enumerate(said)]


def test_flips_stand_first_and_are_named():
    items = compare_items(
        run('Paris', 'Rome', 'Paris', 'Rome'), run('Paris', 'Paris', 'Rome', 'Rome')
    )
    assert [(i['id'], i['outcome']) for i in items] == [
        ('q1', 'gained'),
        ('q2', 'lost'),
        ('q0', 'both right'),
        ('q3', 'both wrong'),
    ]
    assert items[0]['answers'] == ['Rome', 'Paris'] and items[0]['change'] == 1


def test_outcomes_are_counted_by_set():
    items = compare_items(run(*['Rome'] * 20), run(*['Paris'] * 5, *['Rome'] * 15))
    counts = outcome_counts(items)['hr_mmsearch']
    assert (counts['questions'], counts['gained'], counts['lost']) == (20, 5, 0)
    assert (counts['first'], counts['second']) == (0, 0.25)


def test_questions_of_one_run_alone_or_that_failed_are_left_out():
    first = [*run('Paris', 'Rome'), answered(question(9))]
    second = run('Rome', 'Paris')
    second[1].state = SampleState.INFRA_FAILED
    assert [item['id'] for item in compare_items(first, second)] == ['q0']


def test_samples_of_a_question_are_one_item_and_sets_stay_apart():
    first = [answered(question(0), 'Paris', member=m) for m in range(2)]
    second = [answered(question(0), said, member=m) for m, said in enumerate(['Paris', 'Rome'])]
    (item,) = compare_items(first, second)
    assert (item['first'], item['second'], item['outcome']) == (1, 0.5, 'lost')
    both = compare_items(
        run('Paris') + run('Rome', source='vstar'), run('Paris') + run('Paris', source='vstar')
    )
    assert [(i['set'], i['outcome']) for i in both] == [
        ('vstar', 'gained'),
        ('hr_mmsearch', 'both right'),
    ]


@pytest.fixture
def workdirs(tmp_path):
    buffer = io.BytesIO()
    Image.new('RGB', (400, 300), 'teal').save(buffer, 'PNG')
    runs = {'sft': run('Paris', 'Rome', 'Rome'), 'rl': run('Paris', 'Paris', '<script>')}
    for name, ts in runs.items():
        folder = tmp_path / name / 'evaluation'
        folder.mkdir(parents=True)
        (folder / 'policy.jsonl').write_text(''.join(json.dumps(t.to_json()) + '\n' for t in ts))
        image = tmp_path / name / 'tools' / 'images' / PICTURE.sha256[:2] / PICTURE.sha256
        image.parent.mkdir(parents=True)
        image.write_bytes(buffer.getvalue())
    return tmp_path


def compared(*arguments):
    """The command with these arguments."""
    command = [sys.executable, '-m', 'sensesearch_jax.sweep', *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command_compares_runs_that_are_there(workdirs):
    runs = [f'--runs={name}={workdirs / name}' for name in ('sft', 'rl')]
    done = compared(*runs, f'--workdir={workdirs / "compared"}')
    assert done.returncode == 0, done.stderr
    assert 'gained' in done.stdout and '+33.33' in done.stdout and 'q1' in done.stdout
    text = (workdirs / 'compared' / 'sweep.html').read_text()
    assert (
        'rl compared with sft' in text
        and '<script>' not in text.partition('id="flips"')[2].partition('</section>')[0]
    )
    viewer = json.loads(re.search(r'id="viewer-data">(.*?)</script>', text, re.S).group(1))
    assert viewer['runs'] == ['sft', 'rl'] and list(viewer['pictures']) == [PICTURE.sha256]
    summary = json.loads((workdirs / 'compared' / 'summary.json').read_text())
    assert summary['differences'][0]['mean'] == pytest.approx(1 / 3) and 'curves' not in summary
    assert json.loads((workdirs / 'compared' / 'curves.json').read_text()) == {}
    assert '| rl − sft | +33.33' in (workdirs / 'compared' / 'sweep.md').read_text()


def test_status_compares_what_is_over_and_starts_nothing(workdirs):
    sweep = workdirs / 'sweep'
    planned = {f'k-{k}': {'setting': f'k={k}', 'seed': 0, 'tasks': ['evaluate']} for k in (1, 5, 9)}
    for name, run_before in (('k-1', 'sft'), ('k-5', 'rl')):
        folder = sweep / 'runs' / name / 'evaluate'
        shutil.copytree(workdirs / run_before, folder)
        (folder / 'stages').mkdir()
        (folder / 'stages' / 'run.json').write_text('{"result": {}}')
    (sweep / 'sweep.json').write_text(json.dumps(planned))
    config = '--config=configs/evaluate.py', '--vary=evaluate.top_k=1,5,9'
    done = compared(*config, f'--workdir={sweep}', '--status')
    assert done.returncode == 0, done.stderr
    assert 'k=5 − k=1' in done.stdout and '+33.33' in done.stdout
    assert json.loads((sweep / 'summary.json').read_text())['unfinished'] == ['k-9']
    assert len(list((sweep / 'runs').iterdir())) == 2


def test_what_cannot_be_compared_is_refused(workdirs):
    nothing = compared(f'--runs=sft={workdirs / "nowhere"}')
    assert nothing.returncode == 2 and 'neither an evaluation nor metrics' in nothing.stderr
    (workdirs / 'other.jsonl').write_text('{"question": {"id": "a", "kind": "b"}}\n')
    other = compared(f'--runs=sft={workdirs / "other.jsonl"}')
    assert other.returncode == 2 and 'holds no trajectories as' in other.stderr
