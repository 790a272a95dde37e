"""The ledger: replies outlive the process, attempts cut short count, budgets are kept to one call."""

import json
import threading

import pytest

from sensesearch_jax.agent.ledger import Budget, BudgetSpent, Ledger, key_of
from sensesearch_jax.agent.openai_model import Reply, Request, ServedModel, Unanswered
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.errors import UserError

SERVER = ServedModel('http://x/v1', 'm', '', 1.0, 1, 0.0, 1.0, 2.0)  # a dollar a million of prompt
ASKED = Request([{'role': 'user', 'content': 'What?'}], 0.0, 100)
LATE = Unanswered(ToolFailure('timeout', 'late'), billable=True)
REFUSED = Unanswered(ToolFailure('unavailable', 'busy'), billable=False)


def reply(prompt=1_000_000, written=0):
    return Reply(('it',), ('stop',), prompt, written)


def open_ledger(path, usd=0.0, calls=0):
    return Ledger(path / 'ledger.jsonl', Budget(usd, calls))


def pay(ledger, outcome, key='k', stage='mine'):
    ledger.settle(ledger.admit(stage, SERVER, ASKED), SERVER, key, outcome)


def test_what_was_paid_outlives_the_process(tmp_path):
    first = open_ledger(tmp_path)
    pay(first, reply())
    pay(first, REFUSED, 'other')
    pay(first, LATE, 'other', 'expert')
    again = open_ledger(tmp_path)
    assert again.reply('k') == reply() and again.reply('other') is None
    assert again.totals() == first.totals() and (again.calls, again.usd) == (3, 1.0)
    assert again.totals()['mine']['failed'] == {'unavailable': 1}


def test_an_attempt_that_may_be_charged_for_costs_as_much_as_the_dearest(tmp_path):
    ledger = open_ledger(tmp_path)
    for outcome in (reply(2_000_000), reply(), LATE, REFUSED):
        pay(ledger, outcome)
    assert ledger.usd == 2 + 1 + 2 and ledger.totals()['mine']['assumed_usd'] == 2


def test_an_attempt_cut_short_by_the_end_of_the_process_counts(tmp_path):
    ledger = open_ledger(tmp_path)
    pay(ledger, reply())
    ledger.admit('mine', SERVER, ASKED)
    again = open_ledger(tmp_path)
    assert (again.calls, again.usd) == (2, 2.0)
    assert again.totals()['mine']['failed'] == {'cut_short': 1}
    assert open_ledger(tmp_path).totals() == again.totals()


def test_a_reply_is_on_disk_before_it_is_used(tmp_path):
    ledger = open_ledger(tmp_path)
    pay(ledger, reply())
    lines = [json.loads(line) for line in (tmp_path / 'ledger.jsonl').read_text().splitlines()]
    assert lines[0] == {'sent': 0, 'stage': 'mine'}
    assert lines[1]['of'] == 0 and lines[1]['key'] == 'k' and lines[1]['reply']['texts'] == ['it']


def test_calls_are_never_exceeded(tmp_path):
    ledger = open_ledger(tmp_path, calls=2)
    pay(ledger, REFUSED)
    pay(ledger, REFUSED)
    with pytest.raises(BudgetSpent, match=r'budget\.calls 2 is spent.*raise the field'):
        ledger.admit('mine', SERVER, ASKED)
    ledger = open_ledger(tmp_path, calls=3)
    pay(ledger, reply())
    with pytest.raises(BudgetSpent):
        ledger.admit('expert', SERVER, ASKED)


def test_money_is_exceeded_by_one_reply_at_most_however_many_threads_ask(tmp_path):
    ledger = open_ledger(tmp_path, usd=10.5)
    spent = []

    def work(i):
        try:
            while True:
                number = ledger.admit('mine', SERVER, ASKED)
                ledger.settle(number, SERVER, f'{i}-{number}', reply())
        except BudgetSpent as error:
            spent.append(str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert ledger.usd == 11.0 and ledger.calls == 11 and len(spent) == 8
    assert all('budget.usd 10.5 is spent' in sentence for sentence in spent)


def test_a_server_that_counts_nothing_cannot_keep_a_budget_of_money(tmp_path):
    ledger = open_ledger(tmp_path, usd=1.0)
    with pytest.raises(UserError, match='does not count tokens.*set budget.calls'):
        pay(ledger, Reply(('it',), ('stop',), None, None))
    assert ledger.reply('k') is not None  # it is not paid again


def test_a_ledger_that_closes_lets_go_of_those_who_wait(tmp_path):
    ledger = open_ledger(tmp_path, usd=10.0)
    ledger.admit('mine', SERVER, ASKED)
    raised = []

    def wait():
        with pytest.raises(BudgetSpent):
            ledger.admit('mine', SERVER, ASKED)
        raised.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    ledger.close()
    thread.join(10)
    assert raised


def test_keys_tell_requests_apart():
    def key(**changes):
        return key_of(SERVER, Request(**{**vars(ASKED), **changes}))

    keys = {key(), key(sample=1), key(temperature=1.0), key(choices=2), key(messages=[])}
    assert len(keys) == 5 and key() == key()
