"""The file of answers: expiry, size, other processes, kill -9; and what each mode takes from it."""

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from answer_store import taken
from hypothesis import given, settings
from hypothesis import strategies as st

from tools_server.config import AnswerConfig
from tools_server.failures import ToolError
from tools_server.response_cache.modes import Answers
from tools_server.response_cache.reader import StoreError
from tools_server.response_cache.store import AnswerStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'answers.sqlite'


def test_entries_expire(path):
    now = [1000.0]
    store = AnswerStore(path, max_age_s=10, clock=lambda: now[0])
    store.put('k', b'v')
    now[0] += 9
    assert taken(store, 'k') == b'v' and taken(store, 'other') is None
    now[0] += 2
    assert taken(store, 'k') is None
    store.put('k', b'new')
    assert taken(store, 'k') == b'new' and store.statistics()['entries'] == 1


def test_least_recently_used_entries_make_room(path):
    now = [1000.0]
    store = AnswerStore(path, max_bytes=100_000, clock=lambda: now[0])
    for number in range(150):
        now[0] += 1000
        assert taken(store, '0') is not None or number == 0
        store.put(str(number), b'x' * 1000)
    found = store.statistics()
    assert found['bytes'] <= 100_000 and found['entries'] > 80
    assert taken(store, '0') and taken(store, '149') and taken(store, '1') is None
    # larger than all there is room for: not kept, and nothing lost for it
    store.put('huge', b'x' * 200_000)
    assert taken(store, 'huge') is None and taken(store, '149')
    assert path.stat().st_size < 400_000  # space that was freed is given back


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=50), st.booleans()), max_size=30))
def test_total_and_content_follow_any_history(tmp_path_factory, history):
    store = AnswerStore(tmp_path_factory.mktemp('store') / 'a.sqlite')
    expected = {}
    for key, value, replace in history:
        key = key.encode('utf-8', 'replace').decode()
        store.put(key, value, replace=replace)
        if replace or key not in expected:
            expected[key] = value
    assert {key: taken(store, key) for key in expected} == expected
    size = sum(len(key) + len(value) for key, value in expected.items())
    assert store.statistics() == {'entries': len(expected), 'bytes': size}
    store.close()


def test_files_that_are_not_ours(path, tmp_path):
    path.write_bytes(b'no database at all, but long enough to look at' * 50)
    with pytest.raises(StoreError, match='cannot be used'):
        AnswerStore(path)
    other = tmp_path / 'other.sqlite'
    with sqlite3.connect(other) as connection:
        connection.execute('CREATE TABLE letters (text)')
    with pytest.raises(StoreError, match='something else'):
        AnswerStore(other)


@pytest.mark.parametrize('rounds', [25, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_lost_when_writers_are_killed(rounds, path):
    """Two writers at a time, killed at random moments; all that was acknowledged is there, and
    sound."""
    rng = random.Random(0)
    acknowledged: set[str] = set()
    for number in range(rounds):
        writers = [_fork_writer(path, 2 * number + i) for i in range(2)]
        # most are killed while they write, however busy the machine; the others while they open
        if number % 4:
            for _, pipe in writers:
                select.select([pipe], [], [], 60)
        time.sleep(rng.uniform(0.0, 0.04))
        for pid, _ in writers:
            os.kill(pid, signal.SIGKILL)
        for pid, pipe in writers:
            os.waitpid(pid, 0)
            with os.fdopen(pipe) as lines:
                acknowledged.update(line[:-1] for line in lines if line.endswith('\n'))
    store = AnswerStore(path)
    missing = [key for key in acknowledged if taken(store, key) != key.encode() * 50]
    assert len(acknowledged) >= 1.5 * rounds and not missing
    with sqlite3.connect(path) as connection:
        assert connection.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        rows = connection.execute('SELECT count(*), sum(size) FROM entries').fetchone()
    assert store.statistics() == {'entries': rows[0], 'bytes': rows[1]} and rows[0] >= len(
        acknowledged
    )


def _fork_writer(path, number):
    """A process that writes entries and says so after each; returns its id and the pipe."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)  # so that the writer ends when nobody listens any more
    try:
        store = AnswerStore(path)
        for entry in range(10**6):
            key = f'{number}/{entry}'
            store.put(key, key.encode() * 50)
            os.write(writer, f'{key}\n'.encode())
    finally:
        os._exit(1)


def test_processes_share_a_file(path):
    program = (
        'import sys; from pathlib import Path; from tools_server.response_cache.store import AnswerStore\n'
        'store = AnswerStore(Path(sys.argv[1]), max_bytes=10**6)\n'
        'for n in range(100): store.put(f"{sys.argv[2]}/{n}", b"x" * 100); assert store.entry(f"{sys.argv[2]}/{n}")'
    )
    processes = [
        subprocess.Popen([sys.executable, '-c', program, path, str(i)], cwd=ROOT) for i in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert AnswerStore(path).statistics()['entries'] == 400


def test_processes_make_a_file_at_once(tmp_path):
    # All but the first find the tables half made, or made between two looks at them: neither is an
    # error.
    program = (
        'import sys, time; from pathlib import Path; from tools_server.response_cache.store import AnswerStore\n'
        'start = float(sys.argv[2])\n'
        'for n in range(40):\n'
        '    while time.time() < start + n / 20: pass\n'
        '    AnswerStore(Path(sys.argv[1]) / str(n)).put(sys.argv[3], b"")'
    )
    start = str(time.time() + 3)
    command = [sys.executable, '-c', program, tmp_path, start]
    processes = [subprocess.Popen([*command, str(i)], cwd=ROOT) for i in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert [AnswerStore(tmp_path / str(n)).statistics()['entries'] for n in range(40)] == [4] * 40


def test_threads_share_a_store(path):
    store = AnswerStore(path)
    problems = []

    def work(number):
        try:
            for entry in range(50):
                store.put(f'{number}/{entry}', b'x')
                assert taken(store, f'{number}/{entry}') == b'x'
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and store.statistics()['entries'] == 400


class Backend:
    """Counts how often it is asked; fails as often as it is told."""

    def __init__(self, failures=0):
        self.asked, self.failures = 0, failures

    def __call__(self):
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise ToolError('timeout', 'too slow')
        return ['a', 1]


def answers(mode, store, online=True, identity='m'):
    return Answers(
        'tool', {'model': identity}, online, mode, AnswerConfig(), store, lambda v: v, lambda v: v
    )


def asked(answers, request, backend):
    """The value of an answer, and whether it came from disk."""
    answered = answers.answer(request, backend)
    return answered.value, answered.from_disk


def kind_of(answers, request, backend):
    with pytest.raises(ToolError) as error:
        answers.answer(request, backend)
    return error.value.kind


def test_recorded_answers_are_replayed_and_nothing_else(path):
    store, backend, failing = AnswerStore(path), Backend(), Backend(failures=1)
    record = answers('record', store, online=False)
    assert asked(record, {'q': 1}, backend) == (['a', 1], False)
    assert asked(record, {'q': 1}, backend) == (['a', 1], True) and backend.asked == 1
    assert kind_of(record, {'q': 2}, failing) == 'timeout'
    replay = answers('replay', store, online=False)
    assert asked(replay, {'q': 1}, backend) == (['a', 1], True) and backend.asked == 1
    assert kind_of(replay, {'q': 2}, backend) == 'timeout'  # a failure is replayed as well
    # never a live call
    assert kind_of(replay, {'q': 3}, backend) == 'unavailable' and backend.asked == 1
    assert kind_of(answers('replay', store, identity='other'), {'q': 1}, backend) == 'unavailable'


def test_a_result_stands_for_a_request_that_failed_at_first(path):
    store, backend = AnswerStore(path), Backend(failures=1)
    record = answers('record', store)
    assert kind_of(record, {'q': 1}, backend) == 'timeout'
    assert asked(record, {'q': 1}, backend) == (['a', 1], False)
    assert asked(answers('replay', store), {'q': 1}, backend) == (['a', 1], True)


def test_live_keeps_answers_of_online_back_ends_only(path):
    store, backend = AnswerStore(path), Backend()
    live = answers('live', store)
    assert asked(live, {'q': 1}, backend)[1] is False and asked(live, {'q': 1}, backend)[1] is True
    local = answers('live', store, online=False, identity='local')
    assert (
        asked(local, {'q': 1}, backend)[1] is False and asked(local, {'q': 1}, backend)[1] is False
    )
    assert kind_of(live, {'q': 2}, Backend(failures=1)) == 'timeout'
    assert asked(live, {'q': 2}, backend)[1] is False  # no failure was kept


def test_offline_asks_local_back_ends_only(path):
    store, backend = AnswerStore(path), Backend()
    asked(answers('live', store), {'q': 1}, backend)
    offline = answers('offline', store)
    assert asked(offline, {'q': 1}, backend) == (['a', 1], True)
    assert kind_of(offline, {'q': 2}, backend) == 'unavailable' and backend.asked == 1
    assert asked(answers('offline', store, online=False), {'q': 2}, backend) == (['a', 1], False)


def test_a_full_disk_fails_a_recording_and_not_a_live_call(path):
    class Full(AnswerStore):
        def put(self, *args, **options):
            raise StoreError('disk full')

    store = Full(path)
    assert asked(answers('live', store), {'q': 1}, Backend())[0] == ['a', 1]
    assert kind_of(answers('record', store), {'q': 1}, Backend()) == 'unavailable'
