"""The scoring function: what counts as right, what format asks for, which trajectories do not
count."""

import dataclasses

import pytest

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT, RELEASED
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.rewards.accuracy import client_judge
from sensesearch_jax.rewards.evidence import evidence
from sensesearch_jax.rewards.scorer import Scorer

QUESTION = Question(
    'q', 'Which capital?', ('a.png',), ("N'Djamena", 'Ndjamena'), truth={'query': 'capital of Chad'}
)
PAPER = dict(protocol=DEFAULT, judge=None, prices={}, format_weight=0.5, evidence_weight=0.0)
SEEN = Observation(('1. Chad',), True, 'text_search')


def turn(action, observation=None, thought='t', protocol=DEFAULT):
    text = '' if isinstance(action, FormatError) else protocol.render_action(thought, action)
    return Turn([], [], text, action, observation, [])


def trajectory(*turns, question=QUESTION, state=SampleState.OK):
    return Trajectory(question, 0, 0, list(turns), state, [], [], {}, None)


def trajectory_reward(trajectory, judge=None, **changes):
    return Scorer(**PAPER | {'judge': judge} | changes).score(trajectory)


GOOD = trajectory(turn(TextSearch('Chad capital'), SEEN), turn(Answer('ndjamena.')))


def test_a_good_trajectory_gets_everything():
    scored = trajectory_reward(GOOD)
    assert scored.state is SampleState.OK
    assert scored.reward == {
        'total': 1.5,
        'accuracy': 1.0,
        'format': 1.0,
        'evidence': 0.0,
        'tool_cost': 0.0,
    }


def test_evidence_is_what_the_tools_showed_of_what_a_search_is_for():
    about_chad = Question(
        'q',
        'Which capital?',
        ('a.png',),
        ("N'Djamena",),
        category='search',
        difficulty='1',
        truth={'title': 'Flag of Chad', 'query': 'the capital of Chad'},
    )

    def names(*titles):
        return Observation(
            tuple(f'{i}. {t}\n' for i, t in enumerate(titles, 1)), True, 'image_search'
        )

    def page(text, ok=True):
        return Observation((text,), ok, 'text_search')

    def share(*observations, question=about_chad):
        return evidence(
            trajectory(
                *(turn(TextSearch('a'), o) for o in observations),
                turn(Answer('x')),
                question=question,
            )
        )

    named, told = (
        names('Flag of Chad', 'Flag of Mali'),
        page("1. Mali: Bamako\n2. Chad: capital: N'Djamena"),
    )
    assert share() == 0 and share(named) == share(told) == 0.5 and share(named, told) == 1
    assert share(names('Flag of Mali', 'Flag of Chad')) == 0  # only the first result counts
    assert share(page("1. Mali: N'Djamena")) == share(page("1. Chad: N'Djamena", ok=False)) == 0
    assert share(told, question=QUESTION) == 1  # whose title is not known
    seen = Question(
        'q', 'Which colour?', ('a.png',), ("N'Djamena",), category='perception', difficulty='1'
    )
    assert share(told, question=seen) == 0


def test_evidence_is_also_a_near_view_of_the_object():
    def asked(*box, query=''):
        return Question(
            'q', 'Which colour?', ('a.png',), ('red',), truth={'box': box, 'query': query}
        )

    shown = Observation(
        (ImageRef('0' * 64, 90, 60),), True, 'image_crop', (ImageRef('0' * 64, 90, 60),)
    )

    def share(*turns, question=asked(0.42, 0.34, 0.46, 0.38)):
        return evidence(trajectory(*turns, turn(Answer('red')), question=question))

    def crop(*box, image=1):
        return turn(ImageCrop(box, image), shown)

    assert share() == 0 and share(crop(0.3, 0.3, 0.5, 0.5)) == 1
    # too loose, cut off
    assert share(crop(0.0, 0.3, 0.5, 0.5)) == share(crop(0.43, 0.3, 0.6, 0.5)) == 0
    # the second within the first
    assert share(crop(0.0, 0.0, 0.6, 0.6), crop(0.5, 0.5, 0.9, 0.9, image=2)) == 1
    assert (
        share(turn(ImageCrop((0.3, 0.3, 0.5, 0.5)), Observation(('refused',), False, 'tool_error')))
        == 0
    )
    # as when objects are counted
    assert share(crop(0.0, 0.0, 1.0, 1.0), question=asked(0.0, 0.0, 1.0, 1.0)) == 0
    assert (
        share(crop(0.3, 0.3, 0.5, 0.5), question=asked(0.42, 0.34, 0.46, 0.38, query='flag')) == 0.5
    )  # no fact yet


def test_evidence_counts_as_much_as_it_is_weighted():
    told = Observation(("Chad: N'Djamena",), True, 'text_search')
    wrong = trajectory(turn(TextSearch('Chad capital'), told), turn(Answer('Abéché')))
    assert trajectory_reward(wrong).reward['total'] == 0.5
    assert trajectory_reward(wrong, format_weight=0.0, evidence_weight=0.25).reward['total'] == 0.25


def test_prices_are_paid_per_call():
    prices = {'text_search': 0.1, 'image_crop': 0.25}
    whole = trajectory(turn(ImageCrop((0, 0, 1, 1)), SEEN), turn(ImageSearch(), SEEN), *GOOD.turns)
    reward = trajectory_reward(whole, prices=prices).reward
    assert reward['tool_cost'] == pytest.approx(0.35) and reward['total'] == pytest.approx(1.15)
    for wrong in ({'web_search': 1.0}, {'text_search': -1.0}, {'text_search': float('nan')}):
        with pytest.raises(ValueError, match='tool prices'):
            trajectory_reward(GOOD, prices=wrong)


@pytest.mark.parametrize(
    'bad',
    [
        [
            turn(FormatError('no_action', 'x'), Observation(('x',), False, 'format_error')),
            turn(Answer("N'Djamena")),
        ],
        [turn(ImageSearch(7), Observation(('x',), False, 'tool_error')), turn(Answer("N'Djamena"))],
        [turn(TextSearch('a'), SEEN, thought=''), turn(Answer("N'Djamena"))],
        [turn(Answer("N'Djamena"), thought='')],
        [turn(Answer("N'Djamena"), protocol=RELEASED)],
    ],
)
def test_one_mistake_loses_the_format_reward(bad):
    scored = trajectory_reward(trajectory(*bad))
    assert (
        scored.reward['format'] == 0
        and scored.reward['accuracy'] == 1
        and scored.state is SampleState.OK
    )


def test_without_an_answer_it_is_truncated_and_wrong():
    for turns in ([], [turn(TextSearch('a'), SEEN)]):
        scored = trajectory_reward(trajectory(*turns), judge=lambda q, r, i: True)
        assert scored.state is SampleState.TRUNCATED and scored.reward['total'] == 0


def test_the_judge_is_asked_only_where_exact_match_fails():
    asked = []

    def judge(question, response, image):
        asked.append(response)
        return response == 'the city of Ndjamena'

    assert trajectory_reward(GOOD, judge).reward['accuracy'] == 1 and not asked
    assert (
        trajectory_reward(trajectory(turn(Answer('the city of Ndjamena'))), judge).reward[
            'accuracy'
        ]
        == 1
    )
    assert trajectory_reward(trajectory(turn(Answer('Abéché'))), judge).reward['accuracy'] == 0
    choice = Question(
        'q', 'Which?', ('a.png',), ('B',), ('red', 'blue'), category='perception', difficulty='1'
    )
    assert (
        trajectory_reward(trajectory(turn(Answer('C')), question=choice), judge).reward['accuracy']
        == 0
    )
    assert len(asked) == 2


@pytest.mark.parametrize('query', ['the flag', ''])
@pytest.mark.parametrize('gold', ['B', 'B.', '(b)', 'red', 'the Red'])
def test_multiple_choice_is_scored_for_every_way_of_naming_the_option(query, gold):
    question = Question(
        'q', 'Which?', ('a.png',), (gold,), ('blue', 'red', 'green'), truth={'query': query}
    )
    told = Observation(('1. a red flag',), True, 'text_search')

    def said(text):
        return trajectory(turn(TextSearch('a'), told), turn(Answer(text)), question=question)

    answers = 'B', 'red', 'The answer is B', 'A', '(A) or (B)'
    assert [trajectory_reward(said(text)).reward['accuracy'] for text in answers] == [1, 1, 1, 0, 0]
    assert trajectory_reward(said('A')).reward['evidence'] == (1 if query else 0)


def test_a_dead_judge_makes_it_unscorable():
    class Client:
        def judge(self, question, references, response, images=()):
            assert references == list(QUESTION.answers)
            return ToolFailure('timeout', 'late')

    judge = client_judge(Client())
    scored = trajectory_reward(trajectory(turn(Answer('Abéché'))), judge)
    assert scored.state is SampleState.UNSCORABLE and scored.reward['accuracy'] == 0
    assert trajectory_reward(GOOD, judge).state is SampleState.OK


def test_the_judge_is_shown_the_questions_image_and_sent_it_again_where_it_was_lost():
    class Client:
        sent, asked = [], []

        def judge(self, question, references, response, images=()):
            self.asked.append(list(images))
            return True if self.sent else ToolFailure('unavailable', 'there is no image', lost=True)

        def upload(self, image):
            self.sent.append(image)
            return ImageRef('b' * 64, 56, 56)

    client = Client()
    whole = dataclasses.replace(
        trajectory(turn(Answer('Abéché'))), images=[ImageRef('a' * 64, 56, 56)]
    )
    assert trajectory_reward(whole, client_judge(client)).reward['accuracy'] == 1
    assert client.asked == [['a' * 64], ['b' * 64]] and client.sent == [QUESTION.images[0]]


def test_infrastructure_failures_win_over_everything():
    dead = turn(TextSearch('a'), Observation(('x',), False, 'tool_error', infra_failed=True))
    zero = dict.fromkeys(('total', 'accuracy', 'format', 'evidence', 'tool_cost'), 0.0)
    for whole in (
        trajectory(dead, *GOOD.turns),
        trajectory(*GOOD.turns, state=SampleState.INFRA_FAILED),
    ):
        assert trajectory_reward(whole) == (zero, SampleState.INFRA_FAILED)


@pytest.mark.parametrize('protocol, other', [(DEFAULT, RELEASED), (RELEASED, DEFAULT)])
def test_format_is_that_of_the_scorers_protocol(protocol, other):
    moves = (
        (TextSearch('Chad capital'), SEEN),
        (ImageCrop((0.1, 0.2, 0.5, 0.75)), SEEN),
        (Answer("N'Djamena"), None),
    )
    whole = trajectory(*(turn(action, seen, protocol=protocol) for action, seen in moves))
    assert trajectory_reward(whole, protocol=protocol).reward['format'] == 1
    assert trajectory_reward(whole, protocol=other).reward['format'] == 0
