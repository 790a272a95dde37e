"""Trajectories as rows: the sampled ids and the observations, in order, and nothing else."""

import pytest

from sensesearch_jax.agent.actions import Answer, TextSearch
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.batching.from_trajectories import length, to_member, to_row

QUESTION = Question(
    'q', 'What is it?', ('picture.png',), ('this',), category='search', difficulty='1'
)
PICTURE, CROP, THUMBNAIL = (ImageRef(c * 64, 56, 28) for c in 'abc')


def trajectory(turns, prompt=(1, 2, 3), images=(PICTURE,), member=0):
    return Trajectory(
        QUESTION, member, 7, turns, SampleState.OK, list(prompt), list(images), {}, None
    )


def turn(tokens, after=(), log_probs=None):
    log_probs = [-0.5 - t for t in tokens] if log_probs is None else log_probs
    observation = Observation(('text', CROP), True, 'image_crop', (CROP,)) if after else None
    return Turn(
        list(tokens),
        log_probs,
        'text',
        TextSearch('x') if after else Answer('this'),
        observation,
        list(after),
    )


def test_turns_and_observations_alternate():
    told = trajectory(
        [turn([10, 11], [20, 21, 22]), turn([12], [23]), turn([13, 14])],
        images=[PICTURE, CROP, THUMBNAIL],
    )
    member = to_member(told)
    assert member.tokens == [10, 11, 20, 21, 22, 12, 23, 13, 14]
    assert member.response_mask == [True, True, False, False, False, True, False, True, True]
    assert member.images == [CROP.sha256, THUMBNAIL.sha256]  # the picture itself is the prompt's
    assert member.log_probs == [-10.5, -11.5, 0, 0, 0, -12.5, 0, -13.5, -14.5]
    assert length(told) == len(member.tokens) == 9


def test_what_an_expert_wrote_has_no_log_probs():
    member = to_member(trajectory([turn([10, 11], [20], log_probs=[]), turn([12], log_probs=[])]))
    assert member.tokens == [10, 11, 20, 12] and member.log_probs == ()


def test_a_trajectory_that_ended_before_its_first_turn():
    assert to_member(trajectory([])).tokens == [] and length(trajectory([])) == 0


def test_a_group_is_one_row():
    row = to_row([trajectory([turn([10])]), trajectory([turn([11, 12])], member=1)])
    assert row.prompt == [1, 2, 3] and row.images == [PICTURE.sha256]
    assert [m.tokens for m in row.members] == [[10], [11, 12]]
    with pytest.raises(ValueError, match='question q have different prompts'):
        to_row([trajectory([]), trajectory([], prompt=[1, 2])])


def test_a_json_round_trip_gives_the_same_member():
    """Trajectories that a restarted run reads from disk are trained like those it sampled, log-probs to the last
    bit."""
    import json

    told = trajectory(
        [turn([10], [20], log_probs=[-0.1234567890123]), turn([12], log_probs=[-1e-30])]
    )
    again = Trajectory.from_json(json.loads(json.dumps(told.to_json())))
    assert to_member(again) == to_member(told)
