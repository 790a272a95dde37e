"""Working directories: other runs refused, stages marked, writes whole, locks of the dead taken
over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import ml_collections
import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

CONFIG = {
    'rl': {'lr': 1e-5, 'clip': (0.2, 0.28)},
    'name': 'pocket',
    'workdir': 'a',
    'log': {'every': 1},
}


def test_first_start_then_resume(tmp_path):
    with Workdir.open(tmp_path / 'deep' / 'run', CONFIG) as workdir:
        assert not workdir.resumed and workdir.path.is_dir()
        assert json.loads((workdir / 'config.json').read_text())['rl']['clip'] == [0.2, 0.28]
    moved = CONFIG | {'workdir': 'b', 'log': {'every': 5}}
    with Workdir.open(tmp_path / 'deep' / 'run', moved, ignore=('workdir', 'log')) as workdir:
        assert workdir.resumed


def test_config_dicts_are_welcome(tmp_path):
    Workdir.open(tmp_path, ml_collections.ConfigDict({'a': {'b': 1}, 'c': None})).close()
    assert Workdir.open(tmp_path, {'a': {'b': 1}, 'c': None}).resumed


@pytest.mark.parametrize(
    'other, sentence',
    [
        (CONFIG | {'rl': {'lr': 1e-6, 'clip': (0.2, 0.28)}}, 'rl.lr is 1e-05 there and 1e-06 here'),
        (CONFIG | {'seed': 1}, 'seed is not set there and 1 here'),
        (
            {k: v for k, v in CONFIG.items() if k != 'name'},
            "name is 'pocket' there and not set here",
        ),
        (CONFIG | {'log': {'every': 2}}, 'log.every is 1 there and 2 here'),
    ],
)
def test_another_run_is_refused(tmp_path, other, sentence):
    Workdir.open(tmp_path, CONFIG).close()
    with pytest.raises(ValueError, match=f'belongs to another run: {sentence}'):
        Workdir.open(tmp_path, other)
    Workdir.open(tmp_path, CONFIG).close()  # the refusal left it free and unchanged


def test_another_run_beside_it_is_refused(tmp_path):
    """Such as that of a process of an earlier start, whose files the run would take for its own."""
    beside = [tmp_path / 'run-process-1', tmp_path / 'run-process-2']
    Workdir.open(beside[1], CONFIG | {'seed': 1}).close()
    with pytest.raises(ValueError, match='run-process-2 belongs to another run: seed is 1 there'):
        Workdir.open(tmp_path / 'run', CONFIG, beside=beside)
    assert not (tmp_path / 'run' / 'config.json').exists()
    Workdir.open(tmp_path / 'run', CONFIG | {'seed': 2}, ignore=('seed',), beside=beside).close()


def test_directories_that_are_no_workdir(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds thesis.txt but no run'):
        Workdir.open(tmp_path, CONFIG)
    assert os.listdir(tmp_path) == ['thesis.txt']
    with pytest.raises(ValueError, match='cannot be used: File exists'):
        Workdir.open(tmp_path / 'thesis.txt', CONFIG)
    with pytest.raises(ValueError, match='cannot be written as JSON'):
        Workdir.open(tmp_path / 'new', {'lr': float('nan')})


def test_stages(tmp_path):
    with Workdir.open(tmp_path, CONFIG) as workdir:
        assert not workdir.stage_done('sft')
        with pytest.raises(KeyError):
            workdir.stage_result('sft')
        workdir.mark_done('sft', {'steps': 3})
        workdir.mark_done('rl')
        for name in ('', '../sft', 'a.b'):
            with pytest.raises(ValueError, match="stage's name"):
                workdir.stage_done(name)
        with pytest.raises(ValueError, match='cannot be written as JSON'):
            workdir.mark_done('evaluate', {'x': object()})
        assert not workdir.stage_done('evaluate')
    with Workdir.open(tmp_path, CONFIG) as workdir:
        assert workdir.stage_done('sft') and workdir.stage_done('rl')
        assert workdir.stage_result('sft') == {'steps': 3}


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / 'x'
    atomic_write(file, 'old')

    def full_disk(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError):
        atomic_write(file, 'new')
    assert file.read_text() == 'old' and os.listdir(tmp_path) == ['x']


def test_atomic_write_never_shows_a_part(tmp_path):
    file = tmp_path / 'x'
    atomic_write(file, b'0' * 100_000)
    stop = threading.Event()

    def write():
        for i in range(60):
            atomic_write(file, str(i % 10) * 100_000)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        content = file.read_bytes()
        assert len(content) == 100_000 and len(set(content)) == 1
    writer.join()


def test_leftovers_of_a_kill_are_removed(tmp_path):
    Workdir.open(tmp_path, CONFIG).close()
    (tmp_path / '.summary.json.1.2.tmp').write_text('half')
    Workdir.open(tmp_path, CONFIG).close()
    assert not list(tmp_path.glob('.*.tmp'))


def test_twice_in_one_process_is_refused(tmp_path):
    with Workdir.open(tmp_path, CONFIG):
        with pytest.raises(ValueError, match='already open'):
            Workdir.open(tmp_path, CONFIG)
    Workdir.open(tmp_path, CONFIG).close()


HOLD = """
import json, sys
from sensesearch_jax.runtime.workdir import Workdir
Workdir.open(sys.argv[1], json.loads(sys.argv[2]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_living_process_keeps_it_and_a_killed_one_does_not(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path), json.dumps(CONFIG)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == 'open\n'
        with pytest.raises(ValueError, match=f'in use by process {holder.pid}'):
            Workdir.open(tmp_path, CONFIG)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Workdir.open(tmp_path, CONFIG) as workdir:
        assert workdir.resumed


@pytest.mark.parametrize(
    'lock',
    [
        '',
        '{torn',
        '[1]',
        json.dumps({'pid': os.getpid(), 'host': os.uname().nodename, 'started': 1}),
        json.dumps({'pid': os.getppid(), 'host': os.uname().nodename, 'started': 1}),
    ],
    ids=['empty', 'torn', 'list', 'own', 'parent'],  # the same in every process of pytest
)
def test_locks_of_nobody_are_taken_over(tmp_path, lock):
    """Empty, torn, or of an earlier process whose number is in use again."""
    Workdir.open(tmp_path, CONFIG).close()
    (tmp_path / '.lock').write_text(lock)
    Workdir.open(tmp_path, CONFIG).close()


def test_a_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / '.lock').write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'started': None}))
    with pytest.raises(
        UserError,
        match='by process 1 on elsewhere, alive . s ago; if that one is dead, start again after 10',
    ):
        Workdir.open(tmp_path, CONFIG)


def test_a_lock_of_a_machine_that_is_gone_is_taken_over(tmp_path, capsys):
    """Also one of before there was a heartbeat: its last sign of life is when it was written."""
    (tmp_path / '.lock').write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'started': None}))
    os.utime(tmp_path / '.lock', (time.time() - 660, time.time() - 660))
    with Workdir.open(tmp_path, CONFIG):
        assert (
            'process 1 on elsewhere, without a sign of life for 11 minutes'
            in capsys.readouterr().err
        )
        assert json.loads((tmp_path / '.lock').read_text())['pid'] == os.getpid()


def test_an_open_workdir_shows_that_it_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr('sensesearch_jax.runtime.workdir.BEAT_S', 0.01)
    lock, long_ago = tmp_path / '.lock', time.time() - 1000
    with Workdir.open(tmp_path, CONFIG):
        os.utime(lock, (long_ago, long_ago))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime < long_ago + 900:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.utime(lock, (long_ago, long_ago))
    time.sleep(0.1)
    assert lock.stat().st_mtime < long_ago + 900  # closed: no sign any more
