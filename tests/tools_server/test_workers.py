"""Worker processes: results, limits of time and memory, crashes, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.workers.pool import WorkerPool, WorkFailed

MEMORY = 100_000_000


@pytest.fixture
def pool():
    pool = WorkerPool('the test', size=1, memory_bytes=MEMORY, modules=['worker_tasks'])
    yield pool
    pool.close()


def run(pool, function, *values, seconds=5.0):
    return pool.run(f'worker_tasks:{function}', *values, seconds=seconds)


def failure(pool, function, *values, seconds=5.0) -> WorkFailed:
    with pytest.raises(WorkFailed) as error:
        run(pool, function, *values, seconds=seconds)
    return error.value


def ended(process_id: int) -> bool:
    """Whether a process ends within a few seconds; one that nobody has waited for yet has ended
    too."""
    for _ in range(250):
        try:
            os.kill(process_id, 0)
            with open(f'/proc/{process_id}/stat') as file:
                if file.read().rpartition(')')[2].split()[0] == 'Z':
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_values_and_bytes_go_there_and_back(pool):
    assert run(pool, 'echo', {'a': [1, None, 'ä\ud800']}, b'\x00\xff', 2.5) == (
        {'a': [1, None, 'ä\ud800']}, b'\x00\xff', 2.5)  # fmt: skip
    data = os.urandom(3_000_000)
    assert run(pool, 'reverse', data) == data[::-1]
    assert run(pool, 'process_id') == run(pool, 'process_id') != os.getpid()


def test_a_job_beyond_its_time_is_killed_and_the_next_one_runs(pool):
    run(pool, 'echo')
    start = time.monotonic()
    assert failure(pool, 'loop', seconds=0.3).reason == 'time'
    assert time.monotonic() - start < 1.0
    assert run(pool, 'echo', 'next') == ('next',) and pool.statistics()['replaced'] == 1


def test_a_job_beyond_the_deadline_of_its_call_is_killed_then(pool):
    gone = run(pool, 'process_id')
    with deadline.within(0.3), pytest.raises(ToolError) as error:
        run(pool, 'loop', seconds=30)
    assert error.value.kind == 'timeout' and ended(gone)


def test_the_wait_for_a_worker_ends_at_the_deadline(pool):
    run(pool, 'echo')
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(run, pool, 'nap', 1.0)
        time.sleep(0.1)
        with deadline.within(0.2), pytest.raises(ToolError) as error:
            run(pool, 'echo')
        assert error.value.kind == 'timeout' and busy.result() == 'slept'


def test_a_deadline_during_the_start_leaves_the_worker_to_the_next_call(pool):
    with deadline.within(0.001), pytest.raises(ToolError) as error:
        run(pool, 'echo')
    assert error.value.kind == 'timeout'
    assert run(pool, 'echo') == () and pool.statistics() == {
        'processes': 1,
        'working': 0,
        'replaced': 0,
    }


@pytest.mark.skipif(sys.platform != 'linux', reason='the limit is kept by Linux')
def test_memory_is_limited(pool):
    assert run(pool, 'take_memory', MEMORY // 2) == MEMORY // 2
    for _ in range(2):
        assert failure(pool, 'take_memory', 2 * MEMORY).reason == 'memory'
    assert run(pool, 'take_memory', MEMORY // 2) == MEMORY // 2


@pytest.mark.skipif(sys.platform != 'linux', reason='the limit is kept by Linux')
def test_a_worker_that_keeps_memory_is_replaced(pool):
    assert run(pool, 'keep_memory', 70_000_000) == 1
    assert run(pool, 'keep_memory', 1) == 1


@pytest.mark.parametrize('function, sign', [('crash', 'signal 11'), ('leave', 'status 3')])
def test_a_crash_costs_one_call(pool, function, sign):
    error = failure(pool, function)
    assert error.reason == 'crash' and sign in str(error)
    assert run(pool, 'echo') == ()


def test_what_a_function_raises_is_told(pool):
    with pytest.raises(ToolError) as error:
        run(pool, 'complain', 'caller')
    assert (error.value.kind, error.value.message, error.value.status) == (
        'caller', 'the picture is no picture', 413)  # fmt: skip
    assert str(failure(pool, 'complain', 'other')) == 'failed with ValueError: half a ? sentence'
    assert 'AttributeError' in str(failure(pool, 'no_such_function'))
    assert pool.statistics()['replaced'] == 0


def test_a_process_that_cannot_be_started_is_a_failure_with_a_kind(pool, monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/nowhere/python')
    with pytest.raises(ToolError) as error:
        run(pool, 'echo')
    assert error.value.kind == 'unavailable' and 'No such file' in error.value.message
    monkeypatch.undo()
    assert run(pool, 'echo') == ()


def test_a_worker_has_no_keys(pool, monkeypatch):
    monkeypatch.setenv('SERPER_API_KEY', 'secret')
    assert 'secret' not in run(pool, 'environment').values()


def test_a_worker_killed_while_idle_is_replaced(pool):
    gone = run(pool, 'process_id')
    os.kill(gone, signal.SIGKILL)
    time.sleep(0.1)
    assert run(pool, 'process_id') != gone


def test_a_process_that_was_killed_is_started_anew_at_once_and_serves_large_jobs():
    """Who sends files that get a worker killed waits for the next one to start; others do not."""
    pool = WorkerPool('the test', size=2, memory_bytes=MEMORY, modules=['worker_tasks'])
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: run(pool, 'nap', 0.3), range(2)))  # both are there now
    ready = {worker._process.pid for worker in pool._idle}
    with pytest.raises(WorkFailed):
        pool.run('worker_tasks:loop', seconds=0.1, large=True)
    assert pool.statistics() == {'processes': 2, 'working': 0, 'replaced': 1}
    assert pool.run('worker_tasks:process_id', seconds=5, large=True) not in ready
    pool.close()
    assert len(ready) == 2


def test_many_callers_share_a_few_processes():
    pool = WorkerPool('the test', size=2, memory_bytes=MEMORY, modules=['worker_tasks'])
    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: run(pool, 'process_id'), range(200)))
    pool.close()
    assert 1 <= len(found) <= 2


def test_nothing_is_left_after_close():
    def state():
        return len(
            os.listdir('/proc/self/fd')
        ) if sys.platform == 'linux' else 0, threading.active_count()

    before = state()
    pool = WorkerPool('the test', size=2, memory_bytes=MEMORY, modules=['worker_tasks'])
    pool.warm()
    ids = [run(pool, 'process_id')]
    failure(pool, 'loop', seconds=0.1)
    outcome = []

    def work() -> None:
        try:
            run(pool, 'loop', seconds=60)
        except ToolError as error:
            outcome.append(error.kind)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    pool.close()
    thread.join(5)
    assert outcome == ['unavailable'] and all(map(ended, ids)) and state() == before
    with pytest.raises(ToolError) as error:
        run(pool, 'echo')
    assert error.value.kind == 'unavailable'


def test_workers_end_with_a_killed_server():
    code = (
        'from tools_server.workers.pool import WorkerPool\n'
        "pool = WorkerPool('x', 1, 10**8, ['worker_tasks'])\n"
        "print(pool.run('worker_tasks:process_id', seconds=9), flush=True)\n"
        "pool.run('worker_tasks:nap', 0.5, seconds=60)\n"
    )
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        worker = int(process.stdout.readline())
        process.kill()
    assert ended(worker)


def test_the_smallest_of_the_jobs_that_wait_goes_first(pool):
    """Files made to take long are large; an ordinary one does not wait for all of them."""
    run(pool, 'echo')
    done = []

    def job(size):
        run(pool, 'reverse', bytes(size))
        done.append(size)

    with ThreadPoolExecutor(5) as threads:
        busy = threads.submit(run, pool, 'nap', 0.8)
        time.sleep(0.1)
        jobs = []
        for size in (400_000, 300_000, 100):  # they come in this order
            jobs.append(threads.submit(job, size))
            time.sleep(0.1)
        for future in (busy, *jobs):
            future.result()
    assert done == [100, 300_000, 400_000]
