"""Conversion of trajectories to rows of a group batch, by their sampled token ids: no text is
encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.batching.group_batch import Member, Row


def turns_in_loss(trajectory: Trajectory, fatal_mistakes: int) -> int:
    """Number of turns up to the policy's fatal mistake, that one included; all turns without one.

    A mistake is a turn without a valid action, or a call that the tools refuse. What a policy does
    after several in a row says little about what it should have done before, and is masked
    (OpenSearch-VL, arXiv 2605.05185, without its clamp of the advantage).

    Args:
        trajectory: with its turns.
        fatal_mistakes: how many in a row are fatal; 0: none are.
    """
    in_a_row = 0
    for number, turn in enumerate(trajectory.turns, 1):
        seen = turn.observation
        mistaken = seen is not None and not seen.ok and not seen.infra_failed
        in_a_row = in_a_row + 1 if mistaken else 0
        if fatal_mistakes and in_a_row == fatal_mistakes:
            return number
    return len(trajectory.turns)


def to_member(trajectory: Trajectory, fatal_mistakes: int = 0) -> Member:
    """Suffix of a trajectory; its response mask is true on the turns and false on observations, and
    on all that follows a fatal mistake (see `turns_in_loss`).
    """
    in_loss = turns_in_loss(trajectory, fatal_mistakes)
    tokens: list[int] = []
    response_mask: list[bool] = []
    log_probs: list[float] = []
    for number, turn in enumerate(trajectory.turns):
        tokens += [*turn.tokens, *turn.observation_tokens]
        response_mask += [number < in_loss] * len(turn.tokens)
        response_mask += [False] * len(turn.observation_tokens)
        log_probs += [*turn.log_probs, *[0.0] * len(turn.observation_tokens)]
    sampled = len(log_probs) == len(tokens)
    return Member(
        tokens,
        response_mask,
        [image.sha256 for image in trajectory.images[len(trajectory.own_images) :]],
        log_probs if sampled else (),
    )


def to_row(group: Sequence[Trajectory], fatal_mistakes: int = 0) -> Row:
    """Row of one group: the prompt, and a member for each trajectory, see `to_member`.

    Raises:
        ValueError: the trajectories do not share one prompt.
    """
    if any(t.prompt_tokens != group[0].prompt_tokens for t in group):
        raise ValueError(
            f'The trajectories of question {group[0].question.id} have different prompts.'
        )
    images = [image.sha256 for image in group[0].own_images]
    return Row(group[0].prompt_tokens, images, [to_member(t, fatal_mistakes) for t in group])


def to_shared_row(trajectories: Sequence[Trajectory], image_token: int) -> Row:
    """Row of trajectories of different questions, and a member for each of them.

    The tokens that all prompts begin with, a system prompt most of all, are the row's prompt, which
    is run once; the rest of each prompt begins its member.

    Args:
        trajectories: at least one.
        image_token: id of the placeholder token, from which on nothing is shared.
    """
    prompts = [t.prompt_tokens for t in trajectories]
    shared = 0
    for column in zip(*(prompt[:-1] for prompt in prompts)):
        if len(set(column)) > 1 or column[0] == image_token:
            break
        shared += 1
    shared = max(1, shared)  # a row has a prompt
    members = []
    for trajectory, prompt in zip(trajectories, prompts):
        member, rest = to_member(trajectory), prompt[shared:]
        members.append(
            Member(
                [*rest, *member.tokens],
                [*[False] * len(rest), *member.response_mask],
                [image.sha256 for image in trajectory.images],
                [*[0.0] * len(rest), *member.log_probs] if len(member.log_probs) else (),
            )
        )
    return Row(prompts[0][:shared], (), members)


def response_tokens(trajectory: Trajectory, fatal_mistakes: int = 0) -> int:
    """Number of response tokens: those that the policy wrote, or is to learn to write, but for what
    follows a fatal mistake.
    """
    in_loss = turns_in_loss(trajectory, fatal_mistakes)
    return sum(len(turn.tokens) for turn in trajectory.turns[:in_loss])


def length(trajectory: Trajectory) -> int:
    """Number of suffix tokens: those after the prompt, observations included."""
    return sum(len(turn.tokens) + len(turn.observation_tokens) for turn in trajectory.turns)
