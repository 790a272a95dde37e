"""Progress: plain lines in a log, a bar on a terminal."""

import io
import json
import re

from sensesearch_jax.runtime import progress as module
from sensesearch_jax.runtime.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def time(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_from_time_to_time_with_the_time_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr('tqdm.std.time', clock.time)
    file = io.StringIO()
    with Progress('rl', 100, initial=10, interval_s=30, file=file) as progress:
        for _ in range(12):
            clock.now += 6
            progress.update(reward=0.61234, note='warm', groups=12345)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3  # at 30 s, at 60 s, at the end
    # 5 steps in 30 s and 85 to go: 510 s
    assert (
        lines[0] == 'rl: 15/100 [00:30<08:30,  6.00s/step, reward=0.612, note=warm, groups=12345]'
    )
    assert lines[-1].startswith('rl: 22/100 [01:12<')


def test_no_carriage_returns_in_a_log():
    file = io.StringIO()
    with Progress('mine', 3, unit='question', interval_s=0, file=file) as progress:
        for _ in range(3):
            progress.update()
    text = file.getvalue()
    assert '\r' not in text and 'mine: 3/3' in text
    progress.close()
    assert file.getvalue() == text


def test_unknown_total():
    file = io.StringIO()
    with Progress('mine', file=file) as progress:
        progress.update(5)
    assert 'mine: 5/?' in file.getvalue()


def test_a_bar_on_a_terminal():
    file = Terminal()
    with Progress('sft', 2, file=file) as progress:
        progress.update(loss=0.5)
        progress.update(loss=0.25)
    text = file.getvalue()
    assert re.search(r'sft: 100%.*2/2.*loss=0.25', text.split('\r')[-1])


def test_a_file_tells_others_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'FILE_S', 0.0)
    path = tmp_path / 'progress.json'
    module.keep_file(path)
    try:
        with Progress('rl', 10, initial=4, file=io.StringIO()) as progress:
            first = json.loads(path.read_text())
            progress.alarms = ('format',)
            progress.update(reward=0.61234)
            second = json.loads(path.read_text())
    finally:
        module.keep_file(None)
    assert (first['stage'], first['done'], first['total'], first['left_s']) == ('rl', 4, 10, None)
    assert second['done'] == 5 and 0 <= second['left_s'] < 60
    assert second['shown'] == {'ALARM': 'format', 'reward': '0.612'}
    with Progress('sft', 2, file=io.StringIO()):
        assert json.loads(path.read_text())['stage'] == 'rl'  # as of a process without a file
