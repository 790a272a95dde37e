"""The file of answers as a cache: never waited for, never wrong about its age, readable where none
can write."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
from answer_store import taken
from small_world import encoded, picture
from stand_ins import as_json

from tools_server.config import AnswerConfig, ConfigError, parse_config
from tools_server.failures import ToolError
from tools_server.response_cache.behind import LOOK_S, MOST_BYTES, WriteBehind
from tools_server.response_cache.modes import Answers
from tools_server.response_cache.reader import StoreError, open_recording
from tools_server.response_cache.store import AnswerStore
from tools_server.service import ToolService


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'answers.sqlite'


def answers(store, mode='live'):
    return Answers('tool', {}, True, mode, AnswerConfig(), store, lambda v: v, lambda v: v)


def hold(path):
    """A connection of somebody else that holds the file."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute('BEGIN EXCLUSIVE')
    other.execute("INSERT OR IGNORE INTO entries VALUES ('of the other', '', 0, 0, 0)")
    return other


def test_a_locked_cache_delays_no_answer_by_more_than_50_ms(path):
    AnswerStore(path, max_bytes=10**6).put('old', b'x')
    store = WriteBehind(AnswerStore(path, max_bytes=10**6, max_age_s=100, wait_s=LOOK_S))
    cache = answers(store)
    cache.answer({'q': 'known'}, lambda: [0])
    while store.statistics()['entries'] < 2:
        time.sleep(0.01)
    held = hold(path)
    seconds = []
    for number in range(8):
        start = time.monotonic()
        assert cache.answer({'q': number}, lambda: ['new']).value == ['new']
        seconds.append(time.monotonic() - start)
        assert cache.answer({'q': 'known'}, lambda: [1]).value == [0]  # reading goes on meanwhile
    # The median, for the machine may be busy with something else for a moment.
    assert sorted(seconds)[4] < 0.05 and max(seconds) < 1
    held.execute('ROLLBACK')
    store.close()  # what waited is written
    assert AnswerStore(path).statistics()['entries'] == 10


def test_writes_beyond_the_queue_are_dropped_and_counted(path):
    store = WriteBehind(AnswerStore(path, wait_s=LOOK_S))
    held = hold(path)
    for number in range(10):
        store.put(str(number), b'x' * (MOST_BYTES // 5))
    assert store.dropped >= 4
    held.execute('ROLLBACK')
    store.close()
    store.put('late', b'x')
    assert 4 <= AnswerStore(path).statistics()['entries'] <= 6


def test_entries_of_a_clock_set_ahead_expire(path):
    AnswerStore(path, clock=lambda: 2e9).put('ahead', b'v')
    AnswerStore(path, clock=lambda: 1e9).put('now', b'v')
    cache = AnswerStore(path, max_age_s=100, clock=lambda: 1e9 + 50)
    assert taken(cache, 'now') == b'v' and taken(cache, 'ahead') is None
    assert taken(AnswerStore(path), 'ahead') == b'v'  # a recording does not ask for the age


def test_short_lived_answers_of_a_clock_set_ahead_expire(path):
    ahead = answers(AnswerStore(path, clock=lambda: time.time() + 10**6), 'record')
    assert ahead.answer({'q': 1}, lambda: []).value == []
    live = answers(AnswerStore(path, clock=lambda: time.time() + 10**6))
    assert live.answer({'q': 2}, lambda: []).value == []
    now = answers(AnswerStore(path))
    assert now.answer({'q': 2}, lambda: ['found']).value == ['found']


def test_uses_of_a_clock_set_ahead_do_not_keep_entries_for_ever(path):
    now = [1e9]
    AnswerStore(path, clock=lambda: 2e9).put('ahead', b'x' * 1000)
    store = AnswerStore(path, max_bytes=50_000, clock=lambda: now[0])
    for number in range(60):
        now[0] += 1
        store.put(str(number), b'x' * 1000)
    assert taken(store, 'ahead') is None and taken(store, '59')


def as_nobody(do):
    """Result or failure of `do`, in a process that owns nothing: permissions do not hold an
    administrator."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            result = repr(do())
        except BaseException as error:
            result = repr(error)
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result = pipe.read()
    os.waitpid(pid, 0)
    return result


@pytest.fixture
def read_only(path):
    """Makes a folder that only its owner can write, with a copy of a file in the state it is in
    now."""
    folders = []

    def copy():
        folder = Path(tempfile.mkdtemp())
        folders.append(folder)
        for file in path.parent.glob(path.name + '*'):
            if not file.name.endswith('-shm'):
                shutil.copyfile(file, folder / file.name)
                (folder / file.name).chmod(0o444)
        folder.chmod(0o555)
        return folder / path.name

    yield copy
    for folder in folders:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize('killed', [False, True], ids=['closed', 'killed'])
def test_a_recording_is_read_where_nobody_can_write(path, read_only, killed):
    store = AnswerStore(path)
    store.put('k', b'value')
    if not killed:
        store.close()
    copy = read_only()

    def read():
        assert not os.access(copy, os.W_OK) and not os.access(copy.parent, os.W_OK)
        recording = open_recording(copy)
        value = recording.entry('k').value
        recording.close()
        return value

    assert as_nobody(read) == "b'value'"


def test_a_recording_that_is_none_gets_a_sentence(path):
    path.write_bytes(b'no database at all' * 100)
    with pytest.raises(StoreError, match='cannot be used'):
        open_recording(path)
    with pytest.raises(StoreError, match='cannot be used'):
        open_recording(path.parent)


class Services:
    """Starts services of one tool on one file of answers, and ends them."""

    def __init__(self, path):
        self._path, self._open = path, []

    def __call__(self, section, mode='live', tool='text_search'):
        answers = {'path': str(self._path)}
        service = ToolService(parse_config({tool: section, 'mode': mode, 'answers': answers}))
        self._open.append(service)
        service.load()
        return service

    def close(self):
        for service in self._open:
            service.close()


@pytest.fixture
def services(path):
    services = Services(path)
    yield services
    services.close()


def titles(service, query='tower'):
    found = asyncio.run(service.text_search(query, 3)).value
    return [passage.title for passage in found]


def retriever(stand_in, path='/a'):
    limits = {'attempts': 1}
    return {'backend': 'retriever', 'base_url': stand_in.url + path, 'limits': limits}


def by_name(name):
    return as_json({'result': [[{'document': {'contents': f'{name}\nx'}, 'score': 1.0}]]})


@pytest.mark.parametrize('mode', ['live', 'record'])
def test_two_services_do_not_answer_for_each_other(stand_in, services, mode):
    stand_in.answers |= {'/a/retrieve': by_name('a'), '/b/retrieve': by_name('b')}
    for place in 'ab':
        service = services(retriever(stand_in, f'/{place}'), mode)
        assert titles(service) == [place]
        service.close()
    if mode == 'live':
        assert titles(services(retriever(stand_in, '/a'), 'offline')) == ['a']
        return
    for place in 'ab':
        assert titles(services(retriever(stand_in, f'/{place}'), 'replay')) == [place]
    with pytest.raises(ConfigError, match='several back ends of text_search; give the base_url'):
        services(retriever(stand_in, '/c'), 'replay')


def test_a_recording_of_one_service_is_replayed_wherever_the_service_was(stand_in, services):
    stand_in.answers['/a/retrieve'] = by_name('a')
    services(retriever(stand_in), 'record')
    assert titles(services(retriever(stand_in), 'record')) == ['a']
    assert titles(services(retriever(stand_in, '/moved'), 'replay')) == ['a']


def corpus(folder, title):
    folder.mkdir(exist_ok=True)
    (folder / 'passages.jsonl').write_text(f'{{"title": "{title}", "text": "a tower"}}\n')
    return {'backend': 'local', 'passages': str(folder / 'passages.jsonl')}


def test_two_corpora_of_one_file_name_do_not_answer_for_each_other(services, tmp_path):
    one, two = corpus(tmp_path / 'one', 'first'), corpus(tmp_path / 'two', 'second')
    recording = services(one, 'record')
    assert titles(recording) == ['first']
    assert titles(services(two, 'live')) == ['second']
    with pytest.raises(
        ConfigError, match='from other data of the same name; record into a new file'
    ):
        services(two, 'record')
    shutil.rmtree(tmp_path / 'one')  # a replay has no data
    assert titles(services(one, 'replay')) == ['first']


def test_galleries_and_indexes_have_fingerprints_of_what_is_in_them(tmp_path):
    from tools_server.backends.choose import choose
    from tools_server.build_index import main
    from tools_server.config import ImageStoreConfig
    from tools_server.images import ImageStore

    def fingerprints(name, number, title):
        folder = tmp_path / name
        corpus(folder, title)
        (folder / 'p.png').write_bytes(encoded(picture(number)))
        (folder / 'gallery.jsonl').write_text('{"title": "t", "file": "p.png"}\n')
        assert main(['images', str(folder / 'gallery.jsonl'), str(folder / 'pictures')]) == 0
        assert main(['text', str(folder / 'passages.jsonl'), str(folder / 'texts')]) == 0
        sections = [('image_search', {'backend': 'local', 'gallery': str(folder / 'gallery.jsonl')}),
                    ('image_search', {'backend': 'index', 'index': str(folder / 'pictures')}),
                    ('text_search', {'backend': 'index', 'index': str(folder / 'texts')}),
                    ('text_search', corpus(folder, title))]  # fmt: skip
        store = ImageStore(ImageStoreConfig())
        made = [
            choose(getattr(parse_config({tool: fields}), tool), store, None)
            for tool, fields in sections
        ]
        again = [
            choose(getattr(parse_config({tool: fields}), tool), store, None)
            for tool, fields in sections
        ]
        store.close()
        assert [backend.fingerprint for backend in made] == [
            backend.fingerprint for backend in again
        ]
        return [backend.fingerprint for backend in made]

    first, second, third = (
        fingerprints('a', 1, 'x'),
        fingerprints('b', 2, 'y'),
        fingerprints('c', 1, 'x'),
    )
    assert not set(first) & set(second)
    assert [first[i] == third[i] for i in (0, 1, 3)] == [
        True
    ] * 3  # the same content, wherever it is


def test_a_recording_is_durable_before_its_answer_even_where_the_file_is_held(path):
    record = answers(AnswerStore(path), 'record')
    held = hold(path)
    done = threading.Thread(target=lambda: record.answer({'q': 1}, lambda: [1]))
    done.start()
    done.join(0.3)
    assert done.is_alive()  # it waits: an answer that is not in the recording is not given
    held.execute('ROLLBACK')
    done.join(10)
    assert answers(AnswerStore(path), 'replay').answer({'q': 1}, list).value == [1]
    with pytest.raises(ToolError):
        answers(AnswerStore(path), 'replay').answer({'q': 2}, list)
