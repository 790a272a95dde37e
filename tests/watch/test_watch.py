"""The watch page: what a run's files say, as they are, and how a real browser shows it as it goes on."""

import hashlib
import json
import runpy
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from scripted_tools import noise_file
from served_app import served

from sensesearch_jax.agent.actions import Answer, ImageCrop, ImageSearch
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.watch.__main__ import main
from sensesearch_jax.watch.app import create_app
from sensesearch_jax.watch.run_files import runs_in

ROOT = Path(__file__).parents[2]
HEALTHY = (ROOT / 'tests' / 'runtime' / 'healthy_rl.jsonl').read_text().splitlines()
BOX = (0.25, 0.5, 0.75, 1.0)


def picture(folder, name, width, height, seed):
    """A picture in a tool server's folder."""
    file = Path(noise_file(folder / f'{name}.png', width, height, seed))
    data, sha = file.read_bytes(), hashlib.sha256(file.read_bytes()).hexdigest()
    target = folder / 'tools' / 'images' / sha[:2] / sha
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    file.unlink()
    return ImageRef(sha, width, height)


def trajectory(folder, number, member):
    """One that crops, searches and answers."""
    scene = picture(folder, 'scene', 320, 180, number)
    crop, found = picture(folder, 'crop', 160, 90, 7), picture(folder, 'found', 60, 40, 8)

    def turn(thought, action, *parts, new=()):
        text = f'<think>{thought}</think>'
        observation = Observation(parts, True, 'image_crop', new, 0.2) if parts else None
        return Turn([1], [0.0], text, action, observation, [])

    turns = [
        turn('It is small.', ImageCrop(BOX), 'Image 2:', crop, new=(crop,)),
        turn('Who knows it?', ImageSearch(2), 'A flag of <b>Chad</b>', found),
        turn('So it is.', Answer(f'answer {member}')),
    ]
    question = Question(
        f'q{number}', f'What is {number}?', ('scene',), ('answer 0',), category='search'
    )
    reward = {'total': 1.0 - member, 'accuracy': 1.0 - member, 'format': 1.0}
    images = [scene, crop, found]
    return Trajectory(question, member, 0, turns, SampleState.OK, [1], images, reward, f'answer {member}')  # fmt: skip


def add_step(folder, step, numbers):
    """A step's line of metrics, and its trajectories, two of each question."""
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write(HEALTHY[step - 1] + '\n')
    path = folder / 'rl' / 'trajectories' / f'{step - 1:05d}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [trajectory(folder, n, member).to_json() for n in numbers for member in (0, 1)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    progress = {'stage': 'rl', 'done': step, 'total': 24, 'unit': 'step', 'time': time.time(),
                'left_s': 3700.0, 'shown': {'ALARM': 'format', 'reward': '0.394'}}  # fmt: skip
    (folder / 'progress.json').write_text(json.dumps(progress))


def add_alarm(folder, step, name, over):
    line = {'time': 1000.0 * step, 'stage': 'rl', 'step': step, 'alarm': name, 'over': over,
            'sentence': f'It went wrong (alarms.{name} 0.5).'}  # fmt: skip
    with open(folder / 'alarms.jsonl', 'a') as file:
        file.write(json.dumps(line) + '\n')


def new_run(folder):
    folder.mkdir(parents=True)
    config = runpy.run_path(str(ROOT / 'configs' / 'rl.py'))['get_config']()
    (folder / 'config.json').write_text(json.dumps(config.to_dict()))
    add_step(folder, 1, (1, 2))
    add_step(folder, 2, (3, 4))
    return folder


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / 'mine')


@pytest.fixture
def client(run):
    return TestClient(create_app(run), base_url='http://127.0.0.1')


def test_the_state_is_what_the_files_say(run, client):
    add_alarm(run, 1, 'tools_down', False)
    add_alarm(run, 2, 'format', False)
    add_alarm(run, 2, 'tools_down', True)
    (state,) = client.get('/state').json()['runs']
    assert (state['name'], state['task'], state['state']) == ('mine', 'rl', 'stopped')
    assert [alarm['alarm'] for alarm in state['alarms']] == ['format']
    assert [line['over'] for line in state['history']] == [True, False, False]
    assert state['progress']['left_s'] == 3700 and 0 <= state['age_s'] < 60
    (run / 'stages').mkdir()
    (run / 'stages' / 'run.json').write_text('{}')
    assert client.get('/state').json()['runs'][0]['state'] == 'finished'
    (run / 'stages' / 'run.json').unlink()
    with Workdir.open(run, json.loads((run / 'config.json').read_text())):
        assert client.get('/state').json()['runs'][0]['state'] == 'running'


def test_nothing_is_written_and_nothing_else_is_read(run, client, tmp_path):
    (tmp_path / 'secret').write_text('secret')
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob('*'))}
    data = client.get('/runs/mine/trajectories').json()
    assert [q['id'] for q in data['questions']][:2] == ['q4', 'q3'] and data['runs'] == ['1', '2']
    for address in data['pictures'].values():
        assert client.get(f'/{address}').headers['content-type'] == 'image/jpeg'
    assert 'Reward' in client.get('/runs/mine/curves').text
    assert 'rl.questions_per_step' in client.get('/runs/mine/config').text
    for address in ('pictures/..%2f..%2fsecret/9', f'pictures/{"a" * 64}/9', 'nonsense'):
        assert client.get(f'/runs/mine/{address}').status_code == 404
    assert client.get('/runs/other/curves').status_code == 404
    assert client.get('/state', headers={'Host': 'evil.example'}).status_code == 400
    assert client.post('/state').status_code == 405
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob('*'))} == before


def test_a_run_that_is_being_written_has_torn_ends(run, client):
    for name in ('metrics.jsonl', 'alarms.jsonl', 'rl/trajectories/00001.jsonl'):
        with open(run / name, 'a') as file:
            file.write('{"step": 3, "sta')
    assert client.get('/state').status_code == 200
    assert client.get('/runs/mine/curves').status_code == 200
    assert len(client.get('/runs/mine/trajectories').json()['questions']) == 4
    (run / 'metrics.jsonl').write_text('nonsense\n' + HEALTHY[0] + '\n')
    damaged = client.get('/runs/mine/curves')
    assert damaged.status_code == 422 and 'damaged in line 1' in damaged.json()['detail']


def test_a_folder_of_runs_has_them_all_but_further_processes(tmp_path, run):
    new_run(tmp_path / 'other')
    new_run(tmp_path / 'other-process-1')
    (tmp_path / 'notes').mkdir()
    assert list(runs_in(tmp_path)) == ['mine', 'other'] and list(runs_in(run)) == ['mine']


def test_the_command_ends_with_a_sentence(tmp_path, capsys):
    assert main([str(tmp_path / 'absent')]) == 2
    assert 'give the --workdir of a run' in capsys.readouterr().err


def until(page, holds):
    """Waits until something holds; the page's policy forbids Playwright's own functions."""
    for _ in range(600):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError('it never came')


def last_reward(page):
    return page.inner_text('#curves .curve:has-text("Reward") output')


def test_a_browser_shows_the_run_as_it_goes_on(run, page):
    add_alarm(run, 2, 'format', False)
    with served(create_app(run)) as address:
        page.goto(address)
        page.wait_for_selector('#run:not([hidden])')
        assert 'rl · 2 of 24 steps' in page.inner_text('.card')
        assert page.inner_text('.card .state') == 'stopped'
        assert 'It went wrong (alarms.format 0.5).' in page.inner_text('#alarms li.raised')
        assert page.locator('#curves .curve').count() > 5
        # the newest question first, its crop marked in the picture, results with thumbnails
        assert page.inner_text('#viewer article h3') == 'What is 4?'
        pictures = page.locator('#viewer article img')
        until(
            page,
            lambda: pictures.evaluate_all('all => all.map(i => i.naturalWidth > 0)') == [True] * 3,
        )
        frame = page.locator('#viewer .frame').first.bounding_box()
        box = page.locator('#viewer .frame .box').first.bounding_box()
        assert box['x'] == pytest.approx(frame['x'] + BOX[0] * frame['width'], abs=1)
        assert box['height'] == pytest.approx((BOX[3] - BOX[1]) * frame['height'], abs=1)
        assert page.inner_text('#viewer .thumb figcaption') == 'A flag of <b>Chad</b>'
        assert 'answer 0' in page.inner_text('#viewer article')
        page.click('#viewer [role=tab]:nth-child(2)')
        assert 'answer 1' in page.inner_text('#viewer article')
        # a further step appears by itself, and the alarm is over
        before = last_reward(page)
        add_step(run, 3, (5,))
        add_alarm(run, 3, 'format', True)
        page.wait_for_selector('.card:has-text("3 of 24")')
        page.wait_for_selector('#viewer h3:has-text("What is 5?")')
        until(page, lambda: last_reward(page) != before)
        assert page.locator('#alarms li.raised').count() == 0
        # who reads a trajectory keeps it
        page.click('#viewer .list button:has-text("What is 2?")')
        assert not page.is_checked('#follow')
        add_step(run, 4, (6,))
        page.wait_for_selector('.card:has-text("4 of 24")')
        assert page.inner_text('#viewer article h3') == 'What is 2?'
    page.wait_for_selector('.problem:not([hidden])')
    assert 'cannot be reached; start it again' in page.inner_text('.problem')


def test_a_browser_shows_several_runs_beside_each_other(tmp_path, run, page):
    other = new_run(tmp_path / 'other')
    with served(create_app(tmp_path)) as address:
        page.goto(address)
        page.wait_for_selector('#run:not([hidden])')
        assert page.locator('.card').count() == 2 and page.locator('#curves .column').count() == 1
        page.click('.card:has-text("mine")')
        page.wait_for_selector('#curves .column:nth-child(2) .curve')
        assert page.locator('#curves .column').first.get_attribute('data-run') == 'mine'
        first, second = (page.locator('#curves .column').nth(i).bounding_box() for i in (0, 1))
        assert first['y'] == second['y'] and first['x'] + first['width'] <= second['x']
        (other / 'config.json').unlink()
        until(page, lambda: page.locator('.card').count() == 1)
        until(page, lambda: page.locator('#curves .column').count() == 1)
        page.set_viewport_size({'width': 400, 'height': 800})
        width = page.evaluate('document.documentElement.scrollWidth')
        assert width <= 400  # nothing sticks out of a narrow window
