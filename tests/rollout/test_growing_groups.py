"""Groups that begin with some of their members and grow as long as these are not enough."""

import pytest
from acts_by_chance import MEMBERS, essence, scorer_of
from scripted_tools import DOWN, ScriptedTools

from sensesearch_jax.agent.trajectory import SampleState


def judge(question, answer, image):
    return float(len(answer) % 2)


@pytest.mark.parametrize('engines', [1, 2])
@pytest.mark.parametrize('at_first', [1, 2])
def test_a_group_grows_until_it_has_enough(run, plain, questions, at_first, engines):
    """Its members are those that it would have had at once."""
    wanted = {q.id: size for q, size in zip(questions, (1, 2, 3, 1))}
    asked = []

    def enough(group):
        asked.append((group[0].question.id, len(group)))
        assert all('accuracy' in t.reward for t in group)  # scored before it is asked
        return len(group) >= wanted[group[0].question.id]

    groups, events, _, _ = run(
        ScriptedTools(), at_first=at_first, enough=enough, engines=engines, scorer=scorer_of(judge)
    )
    sizes = [min(MEMBERS, at_first * -(-size // at_first)) for size in wanted.values()]
    assert [len(group) for group in groups] == sizes
    every = run(ScriptedTools(), scorer=scorer_of(judge))[0]
    assert essence(groups) == essence([group[:n] for group, n in zip(every, sizes)])
    assert sorted(map(id, events['group'])) == sorted(map(id, groups))
    assert len(asked) == len(set(asked)) and all(size < MEMBERS for _, size in asked)


def test_a_group_whose_picture_is_not_to_be_had_does_not_grow(run, questions):
    tools = ScriptedTools(fails=lambda called, what: DOWN if called == 'upload' else None)
    groups, _, _, _ = run(tools, at_first=1, enough=lambda group: False)
    assert [[t.state for t in group] for group in groups] == [[SampleState.INFRA_FAILED]] * 4
