"""Where answers are lost: what a first box shows, and how far a trajectory came."""

import pytest

from sensesearch_jax.agent.actions import Answer, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.trajectory import Observation, Question, SampleState, Trajectory, Turn
from sensesearch_jax.pocket.lost_answers import (
    BOXES,
    Seen,
    Stages,
    box_kind,
    seen,
    stages,
    stages_by_fact,
)

TARGET = (0.34, 0.44, 0.46, 0.56)


@pytest.mark.parametrize(
    'box, kind',
    [
        ((0.3, 0.4, 0.5, 0.6), 'exact'),
        ((0.2, 0.2, 0.8, 0.9), 'holds it'),
        ((0.37, 0.4, 0.5, 0.6), 'shows most of it'),
        ((0.42, 0.4, 0.5, 0.6), 'shows some of it'),
        ((0.5, 0.4, 0.6, 0.6), 'beside it'),
    ],
)
def test_box_kinds(box, kind):
    assert kind in BOXES and box_kind(box, TARGET) == kind


def trajectory(titles, passages, accuracy):
    question = Question(
        'q',
        'What is the capital?',
        ('q.jpg',),
        ('Rome',),
        category='search',
        difficulty='1',
        truth={'title': 'Flag of Italy', 'field': 'capital'},
    )

    def turn(action, kind, text):
        return Turn([], [], '', action, Observation((text,), ok=True, kind=kind), [])

    turns = [
        turn(ImageSearch(1), 'image_search', titles),
        turn(TextSearch('x'), 'text_search', passages),
        Turn([], [], '', Answer('Rome'), None, []),
    ]
    return Trajectory(question, 0, 0, turns, SampleState.OK, [], [], {'accuracy': accuracy}, 'Rome')


def test_stages_follow_one_another():
    """A fact about another country is none, and what no search had found first is not counted
    further on."""
    found, fact = '1. Flag of Italy\n2. Flag of Mali', '1. Italy: capital: Rome'
    runs = [
        trajectory(found, fact, 1.0),
        trajectory(found, fact, 0.0),
        trajectory(found, '1. Mali: Rome', 0.0),
        trajectory('1. Flag of Mali\n2. Flag of Italy', fact, 0.0),
    ]
    assert stages(runs) == {'search': Stages(4, 3, 2, 1)}
    assert stages_by_fact(runs) == {'capital': Stages(4, 3, 2, 1)}


def test_what_is_seen_is_told_beside_one_answer_to_all():
    """Letters count as well as what they stand for."""

    def asked(field, answer, accuracy, choices=(), cropped=False):
        question = Question(
            'q',
            'Which?',
            ('q.jpg',),
            (answer,),
            category='perception',
            choices=choices,
            truth={'field': field},
        )
        turns = [Turn([], [], '', ImageCrop((0, 0, 1, 1)), None, [])] * cropped
        reward = {'accuracy': accuracy}
        return Trajectory(question, 0, 0, turns, SampleState.OK, [], [], reward, None)

    runs = [
        asked('colour', 'red', 1.0, cropped=True),
        asked('colour', 'Blue', 0.0),
        asked('colour choice', 'A', 1.0, choices=('blue', 'red')),
        asked('count', '3', 0.0),
    ]
    assert seen(runs) == {'colour': Seen(3, 2, 1, 2), 'count': Seen(1, 1, 0, 0)}
    assert stages(runs) == {}
