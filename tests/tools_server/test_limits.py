"""Deadlines, rates, breakers, retries and waiting rooms, with clocks that tests turn."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_server.backend_config import Limits
from tools_server.cache import Cache
from tools_server.config import AnswerConfig
from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.limits.breaker import Breaker
from tools_server.limits.rate import Rate
from tools_server.limits.service import ServiceLimits
from tools_server.limits.thread_pool import ThreadPool
from tools_server.metrics import Metrics
from tools_server.response_cache.modes import Answers
from tools_server.tool_runner import CachingToolRunner


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_inner_deadline_never_extends_an_outer_one():
    with deadline.within(0.5):
        with deadline.within(60):
            assert deadline.left() <= 0.5
        with deadline.within(0.1):
            assert deadline.left() <= 0.1
        assert deadline.left() > 0.1
    assert deadline.left() == float('inf')
    with deadline.within(-1), pytest.raises(ToolError) as error:
        deadline.require_time('x')
    assert error.value.kind == 'timeout'


@given(st.lists(st.floats(0, 0.3), min_size=30, max_size=60))
def test_rate_holds_over_any_pattern(gaps):
    clock, taken = Clock(), []
    rate = Rate(10, burst=3, clock=clock)
    for gap in gaps:
        clock.now += gap
        wait = rate.reserve(longest_s=0.5)
        if wait <= 0.5:
            taken.append(clock.now + wait)
    for start in taken:  # in any second at most the burst and ten more
        assert sum(start <= turn < start + 1 for turn in taken) <= 3 + 10


def test_breaker_opens_tries_once_and_closes():
    clock = Clock()
    breaker = Breaker(failures=3, pause_s=5, clock=clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()  # in between: no failures in a row
    for _ in range(3):
        assert breaker.wait_s() == 0
        breaker.failed()
    assert breaker.open and breaker.wait_s() == pytest.approx(5)
    clock.now += 5.1
    assert breaker.wait_s() == 0 and breaker.wait_s() > 0  # one trial, no stampede
    breaker.failed()
    assert breaker.wait_s() > 4
    clock.now += 5.1
    assert breaker.wait_s() == 0
    breaker.succeeded()
    assert not breaker.open and breaker.wait_s() == 0 and breaker.opened == 1


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures, **about):
        self.left, self.calls, self.about = failures, 0, {'retryable': True} | about

    def __call__(self):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise ToolError('unavailable', 'down', **self.about)
        return 'up'


def limits(**fields):
    return ServiceLimits('it', Limits(**{'retry_pause_s': 0.001} | fields), attempt_s=1)


def test_what_may_help_is_tried_again():
    call = Flaky(2)
    assert limits().run(call) == 'up' and call.calls == 3
    for call in (Flaky(9), Flaky(1, retryable=False), Flaky(1, retry_after_s=60)):
        with deadline.within(5), pytest.raises(ToolError):
            limits().run(call)
        assert call.calls == (3 if call.left == 6 else 1)


def test_retries_take_from_a_budget():
    service = limits(breaker_failures=10**6)
    call = Flaky(10**6)
    for _ in range(100):
        with pytest.raises(ToolError):
            service.run(call)
    assert call.calls == 110  # not 300: ten retries, then the budget is spent
    call.left = 0
    for _ in range(50):
        service.run(call)
    call.left = 2
    assert service.run(call) == 'up'  # successes have filled it


def test_open_breaker_answers_at_once_and_says_when_to_come_again():
    service, call = limits(breaker_failures=3, attempts=1), Flaky(3)
    for _ in range(3):
        with pytest.raises(ToolError):
            service.run(call)
    with pytest.raises(ToolError) as error:
        service.run(call)
    assert (
        call.calls == 3
        and error.value.retry_after_s > 5
        and service.statistics()['breaker_open'] == 1
    )


def test_callers_mistakes_do_not_open_the_breaker():
    service = limits(breaker_failures=2, attempts=1)

    def refuse():
        raise ToolError('refused', 'no')

    for _ in range(5):
        with pytest.raises(ToolError) as error:
            service.run(refuse)
        assert error.value.kind == 'refused'


def test_concurrency_is_bounded_and_the_deadline_holds_while_waiting():
    service, busy, most = limits(concurrency=2, attempts=1), [], []

    def work():
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.1)
        busy.pop()

    def worker(outcomes):
        with deadline.within(0.25):
            try:
                service.run(work)
                outcomes.append('ok')
            except ToolError as error:
                outcomes.append(error.kind)

    outcomes = []
    threads = [threading.Thread(target=worker, args=(outcomes,)) for _ in range(8)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2 and time.monotonic() - start < 1.5
    assert 2 <= outcomes.count('ok') <= 6 and set(outcomes) == {'ok', 'timeout'}


def test_waiting_room_is_bounded_and_a_hung_thread_keeps_its_place():
    release, ran = threading.Event(), []

    async def call(pool, work, seconds):
        try:
            with deadline.within(seconds):
                return await pool.run(work)
        except ToolError as error:
            return error

    async def scenario():
        pool = ThreadPool('tool', threads=2, queue=3)
        start = time.monotonic()
        hung = [asyncio.create_task(call(pool, release.wait, 0.2)) for _ in range(2)]
        await asyncio.sleep(0.05)
        queued = [asyncio.create_task(call(pool, lambda: ran.append(1), 0.2)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (pool.working, pool.waiting) == (2, 3)
        turned_away = await call(pool, lambda: None, 0.2)
        assert turned_away.status == 429 and turned_away.retry_after_s > 0
        results = await asyncio.gather(*hung, *queued)
        assert {result.kind for result in results} == {'timeout'} and time.monotonic() - start < 1.5
        await asyncio.sleep(0.05)
        assert (pool.working, pool.waiting) == (2, 0)  # what waited has left, what hangs has not
        release.set()
        await asyncio.sleep(0.05)
        assert pool.working == 0 and await call(pool, lambda: 'works again', 1) == 'works again'
        pool.close()

    asyncio.run(scenario())
    assert not ran  # a call that was given up while it waited is never begun


class Large:
    """Something that a failing call has read."""


@pytest.fixture
def no_garbage_collector():
    """A collector that runs now and then would hide what is held for too long."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_value_that_cannot_be_made_leaves_nothing_in_the_cache(no_garbage_collector):
    """Picture bombs that were refused stayed until the garbage collector came."""
    read = []

    def call():
        large = Large()
        read.append(weakref.ref(large))
        time.sleep(0.1)  # others join
        raise ToolError('caller', 'no picture')

    def ask(cache):
        try:
            cache.get_or_compute('key', call)
        except ToolError as error:
            return error.kind

    cache = Cache(10)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, [cache] * 3)) == ['caller'] * 3
    assert read and not any(large() for large in read)


@pytest.mark.parametrize('kept', [False, True], ids=['pool', 'tool'])
def test_what_a_failing_call_has_read_goes_with_it(no_garbage_collector, kept):
    """Replies of megabytes that were no verdict stayed until the garbage collector came: 1 GB in a minute."""
    read = []

    def call():
        large = Large()
        read.append(weakref.ref(large))
        raise ToolError('refused', 'not a verdict')

    async def scenario():
        pool = ThreadPool('judge', 2, 5)
        answers = Answers('judge', {}, True, 'live', AnswerConfig(), None, str, str)
        tool = CachingToolRunner('judge', 'm', pool, Metrics(), 10, answers)

        async def ask():
            with pytest.raises(ToolError):
                await (tool.ask({'q': 1}, call) if kept else pool.run(call))

        await asyncio.gather(*(ask() for _ in range(4)))
        deadline_s = time.monotonic() + 5
        while any(large() for large in read) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)  # the threads let go of it a moment later
        assert read and not any(large() for large in read)
        tool.close()

    asyncio.run(scenario())
