"""How right an answer is by the rule that its question names."""

import pytest

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.rewards.accuracy import answer_score
from sensesearch_jax.rewards.scorer import Scorer


def asked(*answers, reward='judge', choices=()):
    return Question('q', 'How long is it?', answers=answers, choices=choices, reward=reward)


def score(question, answer, judge=None):
    return answer_score(question, answer, judge, ())


def says(verdict):
    """A judge, and the responses that it was asked about."""
    heard = []

    def judge(question, response, images):
        heard.append(response)
        return verdict

    return judge, heard


def test_the_judge_is_asked_by_the_rule_judge_alone():
    for reward, right, calls in (('judge', 1.0, 1), ('exact', 0.0, 0), ('f1', 0.0, 0)):
        judge, heard = says(True)
        assert score(asked('Paris', reward=reward), 'the capital', judge) == right
        assert len(heard) == calls
    judge, heard = says(True)
    assert score(asked('red', reward='letter', choices=('red', 'blue')), 'B', judge) == 0.0
    assert score(asked('5', reward='number'), 'about six', judge) == 0.0 and not heard


def test_a_judge_that_fails_is_a_failure():
    failure = ToolFailure('timeout', 'late')
    assert score(asked('Paris'), 'the capital', says(failure)[0]) is failure


@pytest.mark.parametrize(
    'answer, right',
    [('Paris', 1), ('It is Paris', 0.5), ('Rome', 0), ('', 0), ('Paris Paris', 2 / 3)],
)
def test_f1_is_a_share(answer, right):
    assert score(asked('Paris', reward='f1'), answer) == pytest.approx(right)


@pytest.mark.parametrize(
    'references, answer, right',
    [
        (['100'], '100 m', 1),
        (['100'], 'about 109', 1),
        (['100'], '111', 0),
        (['90-110'], '95', 1),
        (['90-110'], '80', 0),
        (['90-110'], '95 to 105', 1),
        (['1,200 km'], '1200', 1),
        (['5', '500'], '510', 1),
        (['0.5'], '.5', 1),  # a half, other than in InfoSeek's script
        (['5'], '.5', 0),
        (['0'], 'none at all', 0),  # no number is no 0
        (['0'], '0', 1),
        (['five'], '5', 1),
        (['200'], 'two hundred', 1),
        (['Paris', '5'], 'five', 1),  # what is no number is no reference
        (['1.2 million'], '1,250,000', 1),
        (['-5'], '-5.2', 1),
        (['-5'], '5', 0),
        (['100'], '1 to 1000000', 0),  # a range that holds everything
    ],
)
def test_numbers_and_ranges(references, answer, right):
    assert score(asked(*references, reward='number'), answer) == right


def test_options_go_by_the_letter_whatever_the_rule():
    for reward in ('judge', 'exact', 'letter', 'f1', 'number'):
        question = asked('B', reward=reward, choices=('5', '50'))
        assert score(question, 'B') == 1 and score(question, '5') == 0


def test_a_share_is_the_reward_s_accuracy_and_a_state_ok():
    question = asked('Paris', reward='f1')
    turn = Turn(
        [], [], '<think>t</think>\n<answer>It is Paris</answer>', Answer('It is Paris'), None, []
    )
    scored = Scorer(DEFAULT, None, {}, 0.5, 0.0).score(
        Trajectory(question, 0, 0, [turn], SampleState.OK, [], [], {}, None)
    )
    assert scored.reward['accuracy'] == 0.5 and scored.reward['total'] == 1.0
    assert scored.state is SampleState.OK
