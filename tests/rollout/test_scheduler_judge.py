"""Verdicts of the judge while the others go on sampling, and rewards of what could not be sampled."""

import threading
import time

from acts_by_chance import MEMBERS, scorer_of
from scripted_tools import DOWN, ScriptedTools

from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.rewards.accuracy import client_judge


class SlowJudge:
    """Takes its time, and counts how many ask at a time."""

    def __init__(self, seconds=0.2, verdict=False):
        self.seconds, self.verdict, self.asked, self.now, self.most = seconds, verdict, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, question, answer, image):
        with self.lock:
            self.asked.append((question.id, answer))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return self.verdict


def test_a_slow_judge_is_asked_side_by_side_while_decoding_goes_on(run, plain, engine, monkeypatch):
    judge, meanwhile = SlowJudge(), []
    decode = engine.decode
    monkeypatch.setattr(
        engine, 'decode', lambda *lanes: (meanwhile.append(judge.now), decode(*lanes))[1]
    )
    told = []
    groups, events, *_ = run(
        ScriptedTools(),
        scorer=scorer_of(judge),
        on_group=lambda g: told.append([t.state for t in g]),
    )
    answers = [(t.question.id, t.answer) for group in groups for t in group if t.answer is not None]
    # equal ones of a group once
    assert len(answers) >= 4 and sorted(judge.asked) == sorted(set(answers))
    assert judge.most > 1 and any(meanwhile)
    # Scored before they are told, and sampled as without a judge.
    assert sorted(map(id, events['group'])) == sorted(map(id, groups))
    assert all('total' in t.reward for group in groups for t in group) and len(told) == len(groups)
    assert [[t.turns[-1].tokens for t in g] for g in groups] == [
        [t.turns[-1].tokens for t in g] for g in plain[0]
    ]


def test_no_more_verdicts_are_asked_for_at_a_time_than_judge_threads(run):
    judge = SlowJudge(0.02)
    run(ScriptedTools(), scorer=scorer_of(judge), judge_threads=1, engines=2)
    assert judge.most == 1 and judge.asked


def test_a_judge_that_fails_makes_its_answers_unscorable_and_stops_nothing(run):
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('judge', 'What is 0?') else None
    )
    groups, *_ = run(tools, scorer=scorer_of(client_judge(tools)))
    for t in (t for group in groups for t in group):
        dead = t.question.id == 'q0' and t.answer is not None
        assert (t.state is SampleState.UNSCORABLE) == dead and t.reward['accuracy'] == 0
    assert any(t.state is SampleState.UNSCORABLE for t in groups[0])


def test_what_no_picture_could_be_had_for_is_scored_as_well(run):
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('upload', '1.png') else None
    )
    groups, *_ = run(tools, scorer=scorer_of(None))
    assert [(t.state, t.reward['total']) for t in groups[1]] == [
        (SampleState.INFRA_FAILED, 0.0)
    ] * MEMBERS
