"""A run on a virtual clock: a case worked out by hand, and what holds of every run."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.simulation import run as simulation
from sensesearch_jax.simulation import stand_ins
from sensesearch_jax.simulation.changes import COLUMNS, changes, row, simulated, with_rollout
from sensesearch_jax.simulation.plans import Latency, PlannedTurn, drawn, with_latency
from sensesearch_jax.simulation.run import KINDS, simulate
from sensesearch_jax.simulation.timeline import COLOURS, draw_timeline

LATE, AT_ONCE = Latency(2, 11), Latency(0, 0)


def questions(pod, count, tool=LATE, seed=0):
    """Steps of questions with short responses, which fit the small caches."""
    steps = drawn(pod.config, pod.preprocessor, tool, tool, seed, 0.0)

    def short(turn):
        return turn._replace(tokens=turn.tokens % 9 + 2, response=turn.response % 40)

    def plan(plan):
        return plan._replace(turns=tuple(map(short, plan.turns)))

    return [
        [g._replace(prompt=70, members=tuple(map(plan, g.members))) for g in step]
        for step in itertools.islice(steps, count)
    ]


def test_a_step_by_hand(pod, by_hand):
    found = simulate(pod, [[by_hand]])
    assert [tuple(s) for s in found.segments[0][0]] == [
        ('vision', 0, 1),
        ('prefill', 1, 4),
        # Four tokens of both, the second one's answer, which is judged beside the rest; and the last
        # token of a call, answered at 8.625.
        ('decode', 4, 4.625),
        ('tools', 4.625, 8.625),
        ('extend', 8.625, 10.625),
        ('decode', 10.625, 11),  # three tokens: an answer, judged until 13
        ('judge', 11, 13),
        ('training', 13, 23.5),  # one micro-batch and the update
        ('hand-over', 23.5, 23.75),
    ]
    assert found.step_s == 23.75 and found.rollout_s == 13
    assert found.per_chip_hour == pytest.approx(8 * 3600 / 23.75 / 4)
    assert found.shares()['tools'] == pytest.approx(4 / 23.75)


def test_a_step_that_waits_for_the_slowest_host_and_compiles(pod, by_hand):
    quick = by_hand._replace(members=by_hand.members[1:] * 2)  # one answer, asked once
    found = simulate(dataclasses.replace(pod, hosts=2, compile_s=50.0), [[by_hand, quick]])
    (slow,), (fast,) = found.segments
    assert [s.kind for s in fast] == [
        'compile', 'vision', 'compile', 'prefill', 'compile', 'decode', 'judge', 'slowest host',
        'compile', 'training', 'hand-over',
    ]  # fmt: skip
    assert fast[7].start == 1 + 3 + 0.5 + 1 + 3 * 50 and fast[7].end == slow[-3].start
    # those, extend and the gradient
    assert sum(s.end - s.start for s in slow if s.kind == 'compile') == 5 * 50
    assert found.programs == 5


def test_without_latency_a_step_is_the_sum_of_its_work(pod):
    found = simulate(pod, questions(pod, 3, AT_ONCE))
    shares = found.shares()
    assert not any(shares[kind] for kind in ('tools', 'judge', 'slowest host', 'compile'))
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize('staleness', [0, 1])
def test_every_moment_of_an_engine_is_one_kind_of_time(pod, staleness):
    machine = dataclasses.replace(pod, staleness=staleness, hosts=2, replicas=2)
    found = simulate(machine, questions(pod, 4))
    assert len(found.segments) == 2 and all(len(engines) == 2 for engines in found.segments)
    for segments in (engine for host in found.segments for engine in host):
        assert all(a.end == b.start for a, b in itertools.pairwise(segments))
        assert segments[0].start == 0 and segments[-1].end == found.steps[-1].ended
    assert sum(found.shares().values()) == pytest.approx(1) and set(found.shares()) == set(KINDS)


@pytest.mark.parametrize('staleness', [0, 1])
def test_tokens_are_those_of_the_plans(pod, staleness, monkeypatch):
    hosts = []
    made = simulation._hosts
    monkeypatch.setattr(simulation, '_hosts', lambda *a: hosts.extend(made(*a)) or hosts)
    steps = questions(pod, 3)
    simulate(dataclasses.replace(pod, staleness=staleness), steps)
    for number, step in enumerate(steps):
        written = [
            [[(len(t.tokens), len(t.observation_tokens)) for t in m.turns] for m in group]
            for group in hosts[0].groups(number)
        ]
        assert written == [
            [
                [(t.tokens, max(1, t.response)) for t in m.turns[:-1]] + [(m.turns[-1].tokens, 0)]
                for m in group.members
            ]
            for group in step
        ]
    turns = [m.turns for step in steps for g in step for m in g.members]
    run = sum(t.tokens + max(1, t.response) for of in turns for t in of[:-1])
    run += sum(of[-1].tokens for of in turns) + sum(g.prompt - 1 for step in steps for g in step)
    # of each response the last token waits, and the one that waited before is run with it
    assert hosts[0].runs[0].engine.tokens_run == run


@pytest.mark.parametrize('seed', range(3))
def test_more_groups_at_once_are_no_slower(pod, seed):
    steps = questions(pod, 3, seed=seed)
    times = [simulate(with_rollout(pod, groups=n), steps).step_s for n in (1, 2, 4)]
    assert times[0] >= times[1] >= times[2]


def test_overlap_hides_what_tools_and_judge_take(pod):
    steps, roomy = questions(pod, 6, Latency(10, 19)), with_rollout(pod, groups=8)
    alone, overlapped = (simulate(dataclasses.replace(roomy, staleness=n), steps) for n in (0, 1))
    assert alone.shares()['tools'] > 0.1
    waited = [sum(r.shares()[k] for k in ('tools', 'judge')) for r in (alone, overlapped)]
    assert waited[1] < 0.6 * waited[0]
    assert overlapped.step_s < 0.9 * alone.step_s


def test_latencies_are_those_that_are_asked_for(pod):
    random = np.random.default_rng(0)
    drawn_s = [LATE.draw(random) for _ in range(20_000)]
    assert np.median(drawn_s) == pytest.approx(2, rel=0.03)
    assert np.quantile(drawn_s, 0.99) == pytest.approx(11, rel=0.05)
    steps = questions(pod, 2)
    at_once = with_latency(steps, AT_ONCE, None, 0)
    seconds = Counter(
        bool(t.tool_s) for s in at_once for g in s for m in g.members for t in m.turns
    )
    assert set(seconds) == {False}
    assert [[g.members[0].judge_s for g in s] for s in at_once] == [
        [g.members[0].judge_s for g in s] for s in steps
    ]
    assert max(t.tool_s for s in steps for g in s for m in g.members for t in m.turns) <= 20


def test_an_accelerator_reads_the_blocks_that_a_lane_has_written(pod, by_hand, monkeypatch):
    read = []
    monkeypatch.setattr(stand_ins, 'BLOCK', 6)
    monkeypatch.setattr(type(pod.rates), 'decode', lambda *a: read.append(a[-1]) or 1.0)
    simulate(dataclasses.replace(pod, platform='cpu'), [[by_hand]])
    assert set(read) == {256 + 4}  # all of the small cache
    read.clear()
    simulate(pod, [[by_hand]])
    # On average of two lanes: without any token, of four each, and of eight and four.
    assert read == [0, 6, 9]


def test_a_turn_that_is_too_long_is_cut_as_the_scheduler_cuts_it(pod, by_hand, monkeypatch):
    long = by_hand._replace(members=(by_hand.members[0]._replace(turns=(PlannedTurn(99),)),) * 2)
    found = simulate(pod, [[long]])
    assert sum(s.end - s.start for s in found.segments[0][0] if s.kind == 'decode') == 64 / 8


def test_hosts_that_do_not_share_out_the_questions_are_refused(pod, by_hand):
    with pytest.raises(UserError, match='2 hosts do not share out 3 questions'):
        simulate(dataclasses.replace(pod, hosts=2), [[by_hand] * 3])


def test_the_timeline_shows_each_kind_where_it_is(pod, by_hand, tmp_path):
    from PIL import Image

    found = simulate(pod, [[by_hand]])
    draw_timeline({'by hand': found}, 23.75, tmp_path / 'timeline.png')
    image = Image.open(tmp_path / 'timeline.png')
    row = [image.getpixel((x, 2 * (58 + 24 + 3))) for x in range(140, image.width - 40)]
    seen = list(dict.fromkeys(f'#{r:02x}{g:02x}{b:02x}' for r, g, b in row))
    order = ['vision', 'prefill', 'decode', 'tools', 'extend', 'judge', 'training', 'hand-over']
    assert [c for c in seen if c in COLOURS.values()] == [COLOURS[kind] for kind in order]


def test_changes_say_what_they_change(pod):
    pods = {change.name: change.pod for change in changes(pod)}
    last = pods['all of these']
    assert (last.replicas, last.staleness) == (1, 1)
    assert (last.config.rollout.groups, pod.config.rollout.groups) == (4, 2)
    assert pods['rollout.extend_lanes 8'].config.rollout.extend_lanes == 8
    few = itertools.islice(changes(pod), 3)
    runs = dict(simulated(few, questions(pod, 3), 0))
    at_once = runs['tools and judge at once']
    assert at_once.shares()['tools'] == 0 < runs['judge at once'].shares()['tools']
    cells = dict(zip(COLUMNS, row('now', at_once, runs['as it is']), strict=True))
    assert float(cells['Times']) > 1 and cells['tools'] == '0.0'
