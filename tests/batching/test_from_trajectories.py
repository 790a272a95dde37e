"""Trajectories as rows: the sampled ids and the observations, in order, and nothing else."""

import numpy as np
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
from sensesearch_jax.batching.from_trajectories import (
    length,
    response_tokens,
    to_member,
    to_row,
    to_shared_row,
    turns_in_loss,
)

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

    # float32 values, as a sampler gives them
    first, second = (float(np.float32(value)) for value in (-0.1234567890123, -1e-30))
    told = trajectory([turn([10], [20], log_probs=[first]), turn([12], log_probs=[second])])
    again = Trajectory.from_json(json.loads(json.dumps(told.to_json())))
    assert to_member(again) == to_member(told)


def test_trajectories_of_different_questions_share_what_their_prompts_begin_with():
    image = 9
    one = trajectory(
        [turn([10, 11], [20])], prompt=(1, 2, 3, image, image, 5), images=[PICTURE, CROP]
    )
    other = trajectory([turn([12])], prompt=(1, 2, 4, 6), images=[THUMBNAIL])
    row = to_shared_row([one, other], image)
    assert (row.prompt, row.images) == ([1, 2], ())
    first, second = row.members
    assert first.tokens == [3, image, image, 5, 10, 11, 20]
    assert first.response_mask == [False] * 4 + [True, True, False]
    assert first.images == [PICTURE.sha256, CROP.sha256] and second.images == [THUMBNAIL.sha256]
    assert first.log_probs == [0.0] * 4 + [-10.5, -11.5, 0]
    assert second.tokens == [4, 6, 12] and second.response_mask == [False, False, True]


def test_pictures_are_never_shared_and_a_prompt_keeps_its_last_token():
    image = 9
    same = [trajectory([turn([10])], prompt=(1, image, image, 5)) for _ in range(2)]
    assert to_shared_row(same, image).prompt == [1]
    text = [trajectory([turn([10])], prompt=(1, 2, 3), images=[]) for _ in range(2)]
    row = to_shared_row(text, image)
    assert row.prompt == [1, 2] and row.members[0].tokens == [3, 10]
    apart = [trajectory([turn([10])], prompt=prompt, images=[]) for prompt in ((1, 2), (1, 3))]
    assert to_shared_row(apart, image).prompt == [1]


def test_what_follows_a_fatal_mistake_is_masked():
    """Two refused calls in a row are fatal; one that is followed by a good one is not."""

    def seen(ok, infra_failed=False):
        return Observation(('so',), ok, 'tool_error', infra_failed=infra_failed)

    def told(*observations):
        turns = [
            Turn([10], [-0.5], 'text', TextSearch('x'), observation, [20])
            for observation in observations
        ]
        return trajectory([*turns, turn([99])])

    recovered = told(seen(False), seen(True), seen(False))
    broken = told(seen(True), seen(False), seen(False), seen(True))
    not_its_own = told(seen(False, infra_failed=True), seen(False, infra_failed=True))
    for told_, of_two, of_one in ((recovered, 4, 1), (broken, 3, 2), (not_its_own, 3, 3)):
        assert turns_in_loss(told_, 0) == len(told_.turns)
        assert (turns_in_loss(told_, 2), turns_in_loss(told_, 1)) == (of_two, of_one)
    member = to_member(broken, 2)
    assert member.response_mask == [True, False] * 3 + [False] * 3
    assert member.tokens == to_member(broken).tokens
    assert (response_tokens(broken), response_tokens(broken, 2)) == (5, 3)
