"""Statistics of a policy's trajectories, which show a collapse early."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.trajectory import SampleState, Trajectory
from sensesearch_jax.rewards.scorer import is_usable


def behaviour(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Means over the trajectories that count (over all, if none does), and the share of each state
    but OK over all.

    Returns:
        'reward', 'accuracy', 'accuracy/CATEGORY', 'format', 'evidence' and 'tool_cost' of the reward; 'turns',
        'response_length' (tokens that the policy wrote), 'tool_calls/NAME' and 'repetition'
        (whether a call was repeated), each per trajectory; 'same_answer', see below; and the states
        by name.
    """
    everyone = list(itertools.chain.from_iterable(groups))
    counted = [t for t in everyone if is_usable(t)] or everyone

    def mean(values):
        return float(np.mean(list(values)))

    states = Counter(t.state for t in everyone)
    values = {
        'reward': mean(t.reward['total'] for t in counted),
        'accuracy': mean(t.reward['accuracy'] for t in counted),
        'format': mean(t.reward['format'] for t in counted),
        'evidence': mean(t.reward['evidence'] for t in counted),
        'tool_cost': mean(t.reward['tool_cost'] for t in counted),
        'turns': mean(len(t.turns) for t in counted),
        'response_length': mean(sum(len(turn.tokens) for turn in t.turns) for t in counted),
        'repetition': mean(repeats_call(t) for t in counted),
        'same_answer': same_answer(counted),
        **{
            state.value: states[state] / len(everyone)
            for state in SampleState
            if state is not SampleState.OK
        },
        **{
            f'tool_calls/{tool}': mean(
                sum(tool_of(turn.action) == tool for turn in t.turns) for t in counted
            )
            for tool in TOOLS
        },
    }
    for category in sorted({t.question.category for t in counted} - {''}):
        values[f'accuracy/{category}'] = mean(
            t.reward['accuracy'] for t in counted if t.question.category == category
        )
    return values


def repeats_call(trajectory: Trajectory) -> bool:
    """Whether some action was taken twice."""
    actions = [turn.action for turn in trajectory.turns]
    return len(set(actions)) < len(actions)


def same_answer(trajectories: Sequence[Trajectory]) -> float:
    """The share of equal pairs among all pairs of answers to different questions; 0 without a pair.

    1 where one answer is given to everything, however many trajectories a question has.
    """
    found: Counter[tuple[str, str]] = Counter()  # by answer and question
    for t in trajectories:
        if t.answer is not None:
            found[' '.join(t.answer.lower().split()), t.question.id] += 1
    answers: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    for (answer, question), count in found.items():
        answers[answer] += count
        questions[question] += count
    within = sum(count**2 for count in found.values())  # equal, and of one question
    pairs = sum(questions.values()) ** 2 - sum(count**2 for count in questions.values())
    return (sum(count**2 for count in answers.values()) - within) / pairs if pairs else 0.0
