"""Limits of a trajectory: turns, malformed turns, and the capacities of prompt and suffix."""

import dataclasses
import functools

import pytest
from acts_by_chance import MEMBERS, PREPROCESSOR, by_chance, scorer_of
from scripted_tools import ScriptedTools

from sensesearch_jax.agent.actions import FormatError, ImageSearch
from sensesearch_jax.agent.protocol import user_text
from sensesearch_jax.agent.trajectory import SampleState, Turn
from sensesearch_jax.batching.from_trajectories import to_member
from sensesearch_jax.rollout.scheduler import RolloutLimits


def test_malformed_turns_in_a_row_end_a_trajectory():
    """Other turns between them start the count anew; 0 means that none of them ends anything."""
    wrong, right = (
        Turn([], [], '', action, None, []) for action in (FormatError('x', 'x'), ImageSearch(1))
    )
    limits = RolloutLimits(max_turns=6, turn_tokens=8, max_malformed=2)
    assert limits.reached([right, wrong, wrong]) and limits.reached([wrong, wrong])
    assert not any(
        map(limits.reached, ([wrong], [wrong, right, wrong], [wrong, wrong, right], [right] * 5))
    )
    assert limits.reached([right] * 6)
    assert not RolloutLimits(max_turns=6, turn_tokens=8).reached([wrong] * 5)


def test_a_policy_that_says_nothing_valid_is_cut_short(run, questions):
    groups, *_ = run(
        ScriptedTools(), act=lambda text: FormatError('no_action', 'No action.'), max_malformed=2
    )
    for t in (t for group in groups for t in group):
        assert t.state is SampleState.TRUNCATED and len(t.turns) == 2 and t.answer is None
        assert t.turns[0].observation is not None and t.turns[1].observation is None


def test_truncation_by_room_never_cuts_a_response(run, engine, chat, monkeypatch):
    """A trajectory ends before a response that does not fit, or in a turn that fills the last room."""
    capacity = 256 - engine.chunk  # of the sizes that are compiled already
    monkeypatch.setattr(engine, 'suffix_capacity', capacity)
    groups, *_ = run(ScriptedTools(), act=functools.partial(by_chance, answers=False), max_turns=50)
    ends = set()
    for t in (t for group in groups for t in group):
        assert t.state is SampleState.TRUNCATED and 1 < len(t.turns) < 50
        tokens = to_member(t).tokens
        assert len(tokens) <= capacity
        assert tokens.count(chat.image_pad) == sum(
            PREPROCESSOR.merged_tokens(image.width, image.height) for image in t.images[1:]
        )
        assert tokens.count(chat.vision_start) == tokens.count(chat.vision_end) == len(t.images) - 1
        last = t.turns[-1]
        assert last.observation is None and last.observation_tokens == []
        ends.add(len(tokens) == capacity)
        for turn in t.turns[:-1]:
            assert turn.observation_tokens == chat.observation(
                turn.observation.parts, turn.tokens[-1]
            )
    assert False in ends


def test_a_prompt_that_does_not_fit_fails_alone(run, plain, engine, questions, chat):
    """Without a look at its picture; the other questions run as ever, with one engine and with two."""
    long = dataclasses.replace(questions[1], text='What is it? ' * 60)
    tokens = len(chat.prompt('Act.', [plain[0][1][0].images[0], user_text(long)]))
    for engines in (1, 2):
        tools = ScriptedTools()
        groups, events, features, _ = run(
            tools,
            asked=[questions[0], long, *questions[2:]],
            engines=engines,
            scorer=scorer_of(None),
        )
        for t in groups[1]:
            assert (t.state, t.turns, t.prompt_tokens, t.images) == (
                SampleState.TOO_LONG,
                [],
                [],
                [],
            )
            assert (
                f'A prompt of {tokens} tokens, 6 of them' in t.failure
                and '84×56 pixels' in t.failure
            )
            assert (
                f'rollout.prompt_capacity {engine.prompt_capacity}' in t.failure
                and t.reward['total'] == 0
            )
        assert [t.member for t in groups[1]] == list(range(MEMBERS)) and len(events['group']) == 4
        for i in (0, 2, 3):
            assert [[turn.tokens for turn in t.turns] for t in groups[i]] == [
                [turn.tokens for turn in t.turns] for t in plain[0][i]
            ]
        name = tools.upload(questions[1].images[0]).sha256
        assert ('image', name) not in tools.calls and name not in features._seen


def test_a_response_that_can_never_fit_is_no_fault_of_the_policy(run, engine, monkeypatch):
    """It is out, with the numbers, and its pictures are not even fetched; one that came too late is
    cut as ever."""
    monkeypatch.setattr(engine, 'suffix_capacity', 25)
    tools = ScriptedTools()
    groups, *_ = run(tools, act=lambda text: ImageSearch(1), max_turns=3, scorer=scorer_of(None))
    thumbnails = {name for name in tools._files} - {
        t.images[0].sha256 for group in groups for t in group
    }
    for t in (t for group in groups for t in group):
        assert (
            t.state is SampleState.TOO_LONG and len(t.turns) == 1 and t.turns[0].observation is None
        )
        assert (
            'A response of image_search of' in t.failure
            and 'rollout.suffix_capacity 25' in t.failure
        )
    assert (
        thumbnails and not {what for method, what in tools.calls if method == 'image'} & thumbnails
    )


def test_the_engine_refuses_a_prompt_that_nobody_has_looked_at(engine, chat):
    with pytest.raises(
        ValueError, match='does not fit into 128; raise rollout.prompt_capacity or lower max_pixels'
    ):
        engine.prefill([0], [[1] * 130], [[]], None)
