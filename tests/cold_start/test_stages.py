"""Stages of a cold start: served answers, demonstrations that go on, work in threads."""

import threading
import time

import pytest
from answering_world import LOOSE, SEARCH, environment, scorer_of

from sensesearch_jax.agent.actions import Answer, ImageSearch, TextSearch
from sensesearch_jax.agent.ledger import BudgetSpent
from sensesearch_jax.agent.openai_model import Reply
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.cold_start.demonstrations import Demonstrations
from sensesearch_jax.cold_start.mining import ServedAnswers
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.cold_start.threads import in_threads
from sensesearch_jax.cold_start.validation import Verdict

DOWN = ToolFailure('unavailable', 'It is down.')
MOVES = [LOOSE, ImageSearch(2), TextSearch('Chad capital'), Answer("N'Djamena")]


class Answering:
    """A served model that gives so many choices at a time, of the given texts in turn."""

    def __init__(self, texts, at_a_time):
        self.texts, self.at_a_time, self.requests = list(texts), at_a_time, []

    def ask(self, request):
        self.requests.append(request)
        if not self.texts:
            return DOWN
        count = min(request.choices, self.at_a_time)
        taken, self.texts = self.texts[:count], self.texts[count:]
        return Reply(tuple(taken), ('stop',) * len(taken), 10, 1)


def mined(model, judge=None):
    found = []
    answers = ServedAnswers(model, environment(), scorer_of(judge=judge), 3, 1.0, 16, 1)
    answers([SEARCH], lambda question, right, texts: found.append((question.id, right, texts)))
    return found


@pytest.mark.parametrize('at_a_time, asked', [(8, [3]), (1, [3, 2, 1])])
def test_all_answers_are_had_in_as_few_requests_as_the_server_allows(at_a_time, asked):
    model = Answering(["N'Djamena", ' Bamako\n', ''], at_a_time)
    assert mined(model) == [('s', 1, ["N'Djamena", 'Bamako', ''])]
    assert [request.choices for request in model.requests] == asked
    assert len({request.sample for request in model.requests}) == len(asked)


def test_what_failed_is_not_known_to_be_hard():
    assert mined(Answering(["N'Djamena"], 8)) == []
    assert mined(Answering(['a', 'b', 'c'], 8), judge=lambda *_: DOWN) == []


class Fragile:
    """An expert that is there for so many turns."""

    def __init__(self, turns):
        self.left, self.asked = turns, []

    def next_turn(self, question, images, turns):
        self.asked.append(len(turns))
        self.left -= 1
        return DOWN if self.left < 0 else ('I do as I was told by the test.', MOVES[len(turns)])


def made(folder, expert, verdict=Verdict((), ''), passes=1):
    """The results of one start."""

    def make(question, begun, note):
        return synthesise(question, expert, environment(), 10, done=begun, note=note)

    with Demonstrations(folder) as found:
        list(found.rest([SEARCH], make, lambda trajectory: verdict, 1))
        return found.done


def test_a_trajectory_goes_on_behind_the_turns_that_it_has(tmp_path):
    lost = Verdict((SampleState.INFRA_FAILED.value,), 'It is down.')
    first, second = Fragile(2), Fragile(9)
    assert made(tmp_path, first, lost)['s'].trajectory.state is SampleState.INFRA_FAILED
    whole = made(tmp_path, second)['s'].trajectory
    assert first.asked == [0, 1, 2] and second.asked == [2, 3]
    assert [turn.action for turn in whole.turns] == MOVES and whole.state is SampleState.OK
    again = Fragile(9)
    assert made(tmp_path, again)['s'].trajectory.turns == whole.turns and not again.asked


def test_a_trajectory_without_a_verdict_is_judged_and_not_made_again(tmp_path):
    unscorable = Verdict((SampleState.UNSCORABLE.value,), 'The judge is down.')
    expert, idle = Fragile(9), Fragile(9)
    made(tmp_path, expert, unscorable)
    against = Verdict(('wrong_answer',), '')
    assert made(tmp_path, idle, against)['s'].verdict == against and not idle.asked
    assert made(tmp_path, idle, Verdict((), ''))['s'].verdict == against


def test_what_fails_is_tried_again_behind_the_others():
    order = []

    def work(item):
        order.append(item)
        return item == 1 and order.count(1) == 1  # fails once

    assert list(in_threads(work, [1, 2, 3], 1, bool)) == [(2, False), (3, False), (1, False)]
    assert order == [1, 2, 3, 1]
    assert list(in_threads(lambda item: True, [1, 2], 1, bool)) == [(1, True), (2, True)]


def test_a_spent_budget_begins_nothing_more_but_loses_nothing():
    spent, begun, results = threading.Event(), [], []

    def work(item):
        begun.append(item)
        if item == 1:
            spent.set()
            raise BudgetSpent('Spent.')
        spent.wait(5)
        time.sleep(0.1)
        return False

    with pytest.raises(BudgetSpent):
        for item, _ in in_threads(work, range(50), 2, bool):
            results.append(item)
    assert 0 in results and sorted([*results, 1]) == sorted(begun) and len(begun) < 10


def test_an_interrupted_run_does_not_wait_for_work_under_way():
    done = threading.Event()
    found = in_threads(lambda item: item and done.wait(10), [0, 1], 2, lambda result: False)
    assert next(found) == (0, 0)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        found.throw(KeyboardInterrupt)
    assert time.monotonic() - began < 5
    done.set()
