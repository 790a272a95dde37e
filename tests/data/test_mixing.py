"""The order of questions: sources by their weights, every question as often as its weight says, none
twice at once, the same after a restart."""

from collections import Counter

import grain
import pytest

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.mixing import Pool, in_turn, step_questions, unique_ids


def pool(name, count, weight=0.0, **weights):
    """Questions 'name0', 'name1', …; `weights` by number, as in _3=0.5."""
    questions = [
        Question(f'{name}{i}', 'What?', weight=weights.get(f'_{i}', 1.0)) for i in range(count)
    ]
    return Pool(name, questions, weight)


def asked(pools, size, steps, seed=0, start=0):
    order = step_questions(pools, size, seed)
    return [[question.id for question in order(step)] for step in range(start, steps)]


def flat(steps):
    return [name for step in steps for name in step]


@pytest.mark.parametrize('count, size', [(24, 10), (160, 128), (5, 4), (7, 7), (12, 4), (9, 8)])
def test_no_step_asks_a_question_twice_and_none_is_skipped(count, size):
    steps = asked([pool('q', count)], size, 60)
    assert all(len(set(step)) == size for step in steps)
    order = flat(steps)
    for begin in range(0, len(order) - count, count):
        assert len(set(order[begin : begin + count])) == count
    assert order[:count] != order[count : 2 * count]


def test_a_step_that_asks_more_than_there_are_asks_all_as_often_as_can_be():
    for step in asked([pool('q', 3)], 8, 20):
        assert set(Counter(step).values()) <= {2, 3}


def test_a_run_that_goes_on_asks_what_it_would_have_asked():
    pools = [pool('a', 24, 3), pool('b', 7, 1, _2=0.4)]
    assert asked(pools, 10, 40, start=17) == asked(pools, 10, 40)[17:]


def test_the_order_is_of_the_seed():
    pools = [pool('q', 24)]
    assert asked(pools, 10, 5) == asked(pools, 10, 5) != asked(pools, 10, 5, seed=1)


def test_the_first_pass_is_grains_own_shuffle():
    shuffled = grain.MapDataset.source(list(range(24))).seed(3).shuffle().repeat()
    names = flat(asked([pool('q', 24)], 8, 9, seed=3))
    assert names == [f'q{shuffled[i]}' for i in range(72)]


def test_sources_without_weights_are_one_and_those_with_weights_have_exact_shares():
    order = flat(asked([pool('a', 30), pool('b', 10)], 8, 5))
    assert Counter(name[0] for name in order) == {'a': 30, 'b': 10}
    order = flat(asked([pool('a', 30, 1), pool('b', 10, 3)], 8, 50))
    for first in range(0, 400, 40):
        assert Counter(name[0] for name in order[first : first + 40]) == {'a': 10, 'b': 30}
    assert set(Counter(name for name in order if name[0] == 'b').values()) == {30}
    steps = asked([pool('a', 30, 1), pool('b', 10, 3)], 8, 50)
    assert all(len(set(step)) == 8 for step in steps)


def test_a_question_of_more_weight_is_drawn_as_much_more_often():
    steps = asked([pool('q', 6, _1=1.5, _2=0.5, _3=0.25)], 3, 140)
    counts = Counter(flat(steps))
    wanted = {'q0': 80, 'q1': 120, 'q2': 40, 'q3': 20, 'q4': 80, 'q5': 80}
    assert counts.keys() == wanted.keys()
    assert all(abs(counts[name] - wanted[name]) <= 1 for name in wanted)
    assert all(len(set(step)) == 3 for step in steps)


def test_a_question_of_little_weight_does_not_hold_up_a_step_that_asks_more_than_there_are():
    counts = Counter(flat(asked([pool('q', 3, _0=0.01)], 4, 50)))
    assert counts['q1'] >= 99 and counts['q2'] >= 99 and 1 <= counts['q0'] <= 2


def test_every_question_once_in_shares_as_long_as_sources_last():
    plain = [question.id for question in in_turn([pool('a', 3), pool('b', 2)])]
    assert plain == ['a0', 'a1', 'a2', 'b0', 'b1']
    mixed = [question.id for question in in_turn([pool('a', 10, 1), pool('b', 10, 4)])]
    assert Counter(name[0] for name in mixed[:10]) == {'a': 2, 'b': 8}
    assert sorted(mixed) == sorted({f'{name}{i}' for name in 'ab' for i in range(10)})


def test_an_id_that_two_sources_have_gets_the_source_s_name():
    one, two = Pool('one', pool('', 2).questions, 0.0), Pool('two', pool('', 3).questions, 0.0)
    named = [[q.id for q in found.questions] for found in unique_ids([one, two])]
    assert named == [['one/0', 'one/1'], ['two/0', 'two/1', '2']]
    named = [[q.id for q in found.questions] for found in unique_ids([one, one])]
    assert named == [['one.0/0', 'one.0/1'], ['one.1/0', 'one.1/1']]
