"""Validation of expert trajectories: format, logic (actions follow from earlier observations) and
answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sensesearch_jax.agent.actions import ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.environment import indexed_images
from sensesearch_jax.agent.protocol import TOOLS
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import SampleState, Trajectory, Turn
from sensesearch_jax.batching.from_trajectories import length
from sensesearch_jax.cold_start.review import Review
from sensesearch_jax.rewards.accuracy import final_answer
from sensesearch_jax.rewards.evidence import (
    asks_fact,
    contains,
    content_words,
    right_texts,
    seen_text,
    states,
)
from sensesearch_jax.rewards.format import format_is_right
from sensesearch_jax.rewards.scorer import Scorer
from tools_server.answer_matching.words import normalise


def validate(trajectory: Trajectory, scorer: Scorer, room: int | None) -> list[str]:
    """The reasons against a trajectory, each once; an empty list keeps it.

    'infra_failed' or 'unscorable': its state, or a judge that failed now. 'format': a turn without
    reasoning or valid action, a refused call, or no answer at the end. 'text_differs': a turn's
    text does not read as its action. 'unknown_image', 'bad_box': a call on an image or a box that
    does not exist. 'repeated_call': the same call twice. 'unseen_title': a query names the object
    before any result or the question did. 'unseen_answer': the answer to a question of a fact stands in no
    result about the object before it. 'wrong_answer': by the run's scorer. 'too_long': more tokens
    after the prompt than a rollout could have.

    Args:
        trajectory: with its tokens.
        scorer: the run's.
        room: tokens that a trajectory may have after its prompt; None: any number.
    """
    if trajectory.state not in (SampleState.OK, SampleState.TRUNCATED):
        return [trajectory.state.value]
    reasons = []
    if not format_is_right(trajectory, scorer.protocol):
        reasons.append('format')
    if any(
        scorer.protocol.parse(turn.text, TOOLS).action != turn.action for turn in trajectory.turns
    ):
        reasons.append('text_differs')
    for i, turn in enumerate(trajectory.turns):
        reasons += _call_reasons(trajectory, trajectory.turns[:i], turn)
    answer = final_answer(trajectory)
    if answer is not None:
        question = trajectory.question
        verdict = scorer.verdict(trajectory, answer)
        if isinstance(verdict, ToolFailure):
            reasons.append(SampleState.UNSCORABLE.value)
        elif verdict < 1:
            reasons.append('wrong_answer')
        read = seen_text(trajectory.turns)
        title = question.truth.get('title', '')
        texts = right_texts(question) if question.choices else (answer,)
        if asks_fact(question) and not any(states(read, text, title) for text in texts):
            reasons.append('unseen_answer')
    if room is not None and length(trajectory) > room:
        reasons.append('too_long')
    return list(dict.fromkeys(reasons))


@dataclass(frozen=True)
class Verdict:
    """The reasons against a trajectory, none if it is kept, and a sentence on them."""

    reasons: tuple[str, ...]
    why: str

    @property
    def final(self) -> bool:
        """Whether asking again would say the same: no tool, judge or model had failed."""
        return not {SampleState.INFRA_FAILED.value, SampleState.UNSCORABLE.value} & {*self.reasons}

    @property
    def text(self) -> str:
        """Reasons and sentence."""
        return ', '.join(self.reasons) + (f': {self.why}' if self.why else '')


def verdict_on(
    trajectory: Trajectory,
    scorer: Scorer,
    room: int | None,
    reviewer: Callable[[Trajectory], Review | ToolFailure] | None,
) -> Verdict:
    """The verdict of the rules and, where they have nothing against it, of a model.

    Args:
        trajectory: with its tokens.
        scorer: the run's.
        room: tokens that a trajectory may have after its prompt; None: any number.
        reviewer: the model's review; None: the rules alone.
    """
    reasons = validate(trajectory, scorer, room)
    if reasons or reviewer is None:
        return Verdict(tuple(reasons), trajectory.failure)
    review = reviewer(trajectory)
    if isinstance(review, ToolFailure):
        return Verdict((SampleState.UNSCORABLE.value,), review.message)
    return Verdict(tuple(f'review_{point}' for point in review.against), review.why)


def _call_reasons(trajectory: Trajectory, before: list[Turn], turn: Turn) -> list[str]:
    action, reasons = turn.action, []
    if isinstance(action, TextSearch | ImageSearch | ImageCrop) and any(
        t.action == action for t in before
    ):
        reasons.append('repeated_call')
    if isinstance(action, ImageSearch | ImageCrop):
        known = indexed_images(trajectory.own_images, before)
        if not 1 <= action.image_index <= len(known):
            reasons.append('unknown_image')
    if isinstance(action, ImageCrop):
        x0, y0, x1, y1 = action.bbox
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            reasons.append('bad_box')
    if isinstance(action, TextSearch) and _unseen_name(trajectory, before, action.query):
        reasons.append('unseen_title')
    return reasons


def _unseen_name(trajectory: Trajectory, before: list[Turn], query: str) -> bool:
    """Whether a content word of the object's title is in the query but in no result or question
    before it.
    """
    question = trajectory.question
    title = content_words(question.truth.get('title', ''))
    shown = question.text + '\n' + seen_text(before)
    words = (word for word in normalise(query).split() if word in title)
    return any(not contains(shown, word) for word in words)
