"""The process of paid requests: a kill of the run loses no reply, and nothing is sent twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.ledger import Budget, BudgetSpent
from sensesearch_jax.agent.openai_model import Request, ServedModel
from sensesearch_jax.agent.request_process import PaidRequests
from sensesearch_jax.errors import UserError

FREE = Budget(0.0, 0)


@pytest.fixture
def service():
    with chat_stand_in() as started:
        yield started


def asked(i):
    return Request([{'role': 'user', 'content': f'What is {i}?'}], 0.0, 16)


def opened(service, folder, budget=FREE):
    server = ServedModel(service.url, 'm', '', 5.0, 2, 0.0, 1.0, 1.0)
    return PaidRequests(folder / 'ledger.jsonl', budget, {'mine': server}, threads=4)


def test_a_reply_is_paid_once_over_all_starts(service, tmp_path):
    service.replies = lambda request: request.body['messages'][0]['content']
    for _ in range(2):
        with opened(service, tmp_path) as paid:
            assert paid.of('mine').ask(asked(1)).text == 'What is 1?'
            assert (paid.calls, paid.usd) == (1, pytest.approx(120e-6))
    assert len(service.requests) == 1


def test_equal_requests_at_the_same_time_are_one(service, tmp_path):
    def slow(request):
        time.sleep(0.3)
        return 'it'

    service.replies = slow
    with opened(service, tmp_path) as paid, ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: paid.ask('mine', asked(1)).text, range(3)))
    assert replies == ['it'] * 3 and len(service.requests) == 1


def test_failures_are_values_and_a_spent_budget_is_not(service, tmp_path):
    service.replies = [500, 500]
    with opened(service, tmp_path, Budget(0.0, 2)) as paid:
        assert paid.ask('mine', asked(1)).kind == 'unavailable'
        with pytest.raises(BudgetSpent, match=r'budget\.calls 2'):
            paid.ask('mine', asked(1))


def test_a_spoilt_ledger_is_said(service, tmp_path, capfd):
    (tmp_path / 'ledger.jsonl').write_text('nonsense\n{}\n')
    with pytest.raises(UserError, match='cannot be used'):
        opened(service, tmp_path)
    assert 'Line 1' in capfd.readouterr().err


RUN = """
import sys
from pathlib import Path
from test_request_process import FREE, asked
from sensesearch_jax.agent.openai_model import ServedModel
from sensesearch_jax.agent.request_process import PaidRequests
server = ServedModel(sys.argv[1], 'm', '', 5.0, 2, 0.0, 1.0, 1.0)
paid = PaidRequests(Path(sys.argv[2]) / 'ledger.jsonl', FREE, {'mine': server}, 4)
paid.ask('mine', asked(1))
"""


def test_a_killed_run_does_not_pay_twice(service, tmp_path):
    """The reply comes after the run was killed, and is there at the next start."""
    go_on = threading.Event()

    def held(request):
        go_on.wait(10)
        return 'it'

    service.replies = held
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([os.getcwd(), *sys.path])}
    run = subprocess.Popen(
        [sys.executable, '-c', RUN, service.url, tmp_path], env=environment, start_new_session=True
    )
    while not service.requests:
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    threading.Timer(0.5, go_on.set).start()
    with opened(service, tmp_path) as paid:
        assert paid.ask('mine', asked(1)).text == 'it'
    assert len(service.requests) == 1


def test_nothing_is_sent_after_the_end(service, tmp_path):
    with opened(service, tmp_path) as paid:
        pass
    with pytest.raises(UserError, match='has ended'):
        paid.ask('mine', asked(1))
    assert not service.requests


def test_a_sender_that_is_killed_is_said(service, tmp_path):
    def kill(request):
        os.kill(paid._process.pid, signal.SIGKILL)
        return 'late'

    service.replies = kill
    paid = opened(service, tmp_path)
    with pytest.raises(UserError, match='start again with the same --workdir'):
        paid.ask('mine', asked(1))
    service.replies = ['it']
    with opened(service, tmp_path) as again:
        assert again.ask('mine', asked(1)).text == 'it' and again.calls == 2
        assert again.totals['mine']['failed'] == {'cut_short': 1}
