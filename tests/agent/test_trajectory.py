"""Trajectories survive the way to disk and back."""

import json

import numpy as np

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)


def test_trajectory_round_trip_through_json():
    picture, crop = ImageRef('a' * 64, 3840, 2160), ImageRef('b' * 64, 768, 432)
    question = Question(
        'q1',
        'Which?',
        ('a.png',),
        ('A',),
        ('x', 'y'),
        category='search',
        difficulty='2',
        truth={'box': [0, 0, 1, 1]},
    )
    seen = Observation(('Image 2:', crop), True, 'image_crop', (crop,), 0.25)
    error = Observation(('No action.',), False, 'format_error')
    turns = [
        Turn([1, 2], [-0.5, -0.25], 'é', ImageCrop((0.0, 0.1, 0.5, 1.0), 1), seen, [3, 4]),
        Turn([5], [-1.0], '', FormatError('no_action', 'No action.'), error, [6]),
        Turn([np.int32(7)], [np.float32(-0.5)], 'a', Answer('A'), None, []),
    ]
    reward = {'total': 1.5, 'accuracy': 1.0, 'format': 1.0, 'tool_cost': 0.0}
    whole = Trajectory(question, 3, 17, turns, SampleState.OK, [8, 9], [picture, crop], reward, 'A')
    assert Trajectory.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_questions_can_be_keys():
    assert (
        len(
            {
                Question(
                    'q', 't', ('i',), ('a',), category='search', difficulty='1', truth={'box': [1]}
                )
            }
            | {Question('q', 't', ('i',), ('a',), category='search', difficulty='1')}
        )
        == 2
    )


def test_files_of_earlier_versions_are_read():
    """They have log-probs as numbers, and those of the unmodified distribution too."""
    turn = Turn([7], [-0.5], 'a', Answer('A'), None, [])
    assert Turn.from_json(turn.to_json() | {'log_probs': [-0.5], 'raw_log_probs': [-0.25]}) == turn


def test_log_probs_come_back_bit_for_bit_in_a_quarter_of_their_digits():
    drawn = np.log(np.random.default_rng(0).random(1000, np.float32)).tolist()
    turn = Turn([7] * 1000, drawn, 'a', Answer('A'), None, [])
    written = json.dumps(turn.to_json()['log_probs'])
    assert Turn.from_json(json.loads(json.dumps(turn.to_json()))).log_probs == drawn
    assert len(written) < len(json.dumps(drawn)) / 3.5
