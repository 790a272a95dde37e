"""One line of results.jsonl per sample: the answer, all of its scores, and how it was come by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sensesearch_jax.agent.actions import FormatError
from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.evaluation.metrics.table import metrics_of
from sensesearch_jax.evaluation.summary import COUNTED, SEARCHES, cluster, found_something
from sensesearch_jax.rewards.accuracy import answer_score

# Why a trajectory ended. Those after the first four are the infrastructure's, and do not count.
ANSWERED, TURNS, MALFORMED, LENGTH = 'answered', 'turns', 'malformed', 'length'
FINISHES = (ANSWERED, TURNS, MALFORMED, LENGTH, 'tool_failed', 'judge_failed', 'too_long')
_BY_STATE = {
    SampleState.OK: ANSWERED,
    SampleState.INFRA_FAILED: 'tool_failed',
    SampleState.UNSCORABLE: 'judge_failed',
    SampleState.TOO_LONG: 'too_long',
}


def result_row(trajectory: Trajectory, max_turns: int, max_malformed: int) -> dict[str, Any]:
    """The line of a scored trajectory.

    Args:
        trajectory: scored, with its answer where it has one.
        max_turns: most turns that it could have had.
        max_malformed: turns in a row without a valid action that ended it; 0: none did.

    Returns:
        'set', 'id', 'sample' (from 0), 'category', 'difficulty', 'question', 'choices',
        'references', 'answer' (None without one), 'state', 'failure', 'finish' (of `FINISHES`),
        'counted' (whether it says something about the agent), 'accuracy' (the paper's metric: a
        match with a reference or the judge's Yes, and the letter for options), 'matched' (whether
        the match was enough), 'format', 'metrics' {name: score}, 'turns', 'tool_calls' {tool:
        number}, 'searches' {tool: {'asked', 'found'}}, 'retrieved' (images of search results in the
        prompt, of mode 'rag'), 'tokens' (written by the agent; None where they are not known),
        'tool_wait_s', 'cluster' (equal for samples that are not independent).
    """
    question, answer = trajectory.question, trajectory.answer
    accuracy = trajectory.reward.get('accuracy', 0.0)
    right = accuracy == 1
    calls = Counter(tool_of(turn.action) for turn in trajectory.turns)
    tokens = sum(len(turn.tokens) for turn in trajectory.turns)
    return {
        'set': question.source,
        'id': question.id,
        'sample': trajectory.member,
        'category': question.category,
        'difficulty': question.difficulty,
        'question': question.text,
        'choices': list(question.choices),
        'references': list(question.answers),
        'answer': answer,
        'state': trajectory.state.value,
        'failure': trajectory.failure,
        'finish': _finish(trajectory, max_turns, max_malformed),
        'counted': trajectory.state in COUNTED,
        'accuracy': accuracy,
        'matched': right and _matches(question, answer),
        'format': trajectory.reward.get('format', 0.0),
        'metrics': {
            metric.name: 0.0 if answer is None else metric.score(question, answer, right)
            for metric in metrics_of(question)
        },
        'turns': len(trajectory.turns),
        'tool_calls': {tool: calls[tool] for tool in TOOLS},
        'searches': {tool: _searches(trajectory.turns, tool) for tool in SEARCHES},
        'retrieved': len(trajectory.retrieved_images),
        'tokens': tokens or None,
        'tool_wait_s': round(
            sum(t.observation.latency_s for t in trajectory.turns if t.observation), 3
        ),
        'cluster': list(cluster(question)),
    }


def _matches(question: Question, answer: str | None) -> bool:
    """Whether an answer is right without a judge."""
    return answer is not None and answer_score(question, answer, None, ()) == 1


def _searches(turns: Sequence[Turn], tool: str) -> dict[str, int]:
    """Searches that the agent asked for with a tool, and those that returned something."""
    shown = [t.observation for t in turns if tool_of(t.action) == tool and t.observation]
    return {'asked': len(shown), 'found': sum(map(found_something, shown))}


def _finish(trajectory: Trajectory, max_turns: int, max_malformed: int) -> str:
    if trajectory.state in _BY_STATE:
        return _BY_STATE[trajectory.state]
    turns = trajectory.turns
    if len(turns) >= max_turns:
        return TURNS
    last = turns[-max_malformed:] if max_malformed else []
    if last and len(last) == max_malformed and all(isinstance(t.action, FormatError) for t in last):
        return MALFORMED
    return LENGTH
