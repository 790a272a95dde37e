"""The page of a cold start: how many questions come through each stage and why others do not, what
it cost, and trajectories of both sorts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.protocol import Protocol, tool_of
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.evaluation.page import bars, write_page
from sensesearch_jax.evaluation.trajectory_viewer import ImageLoader, viewer_data

SHOWN, IMAGE_BUDGET = 60, 12_000_000
COLOURS = {'kept': 'other1', 'rejected': 'rl'}
STAGES = {'mine': 'Mining', 'expert': 'Synthesis', 'validate': 'Validation'}
TOOLS = {'text_search': 'text search', 'image_search': 'image search', 'image_crop': 'crop'}


def write_cold_start_page(
    path: Path,
    *,
    questions: Sequence[Question],
    right: Mapping[str, int],
    samples: int,
    most_right: int,
    kept: Sequence[Trajectory],
    rejected: Sequence[Trajectory],
    reasons: Mapping[str, int],
    spending: Mapping[str, Mapping[str, Any]],
    budget: Mapping[str, float],
    ended: str,
    image_loader: ImageLoader,
    protocol: Protocol,
) -> int:
    """Writes the page and returns its size in bytes.

    Args:
        path: of the HTML file.
        questions: of the pool.
        right: right answers of the mined ones, by the questions' ids.
        samples: plain answers to each.
        most_right: right answers of a hard one at most.
        kept: trajectories that SFT learns from.
        rejected: the others, with the reasons as their failure.
        reasons: how often each reason was given.
        spending: of each stage with a served model; see `agent.ledger.Spending`.
        budget: 'usd' and 'calls'; 0 is no limit.
        ended: why the run ended before its time; '' if it did not.
        image_loader: encoded image file by SHA-256; anything but bytes where there is none.
        protocol: the text form of the trajectories.
    """
    hard = sum(count <= most_right for count in right.values())
    made = len(kept) + len(rejected)
    funnel = {'questions': len(questions), 'mined': len(right), 'hard': hard, 'demonstrated': made}
    viewer = viewer_data(
        {'kept': _marked(kept), 'rejected': _marked(rejected)},
        image_loader,
        protocol,
        shown=SHOWN,
        image_budget=IMAGE_BUDGET,
    )
    viewer['labels'] = {'kept': 'Kept', 'rejected': 'Rejected'}
    viewer['colours'] = COLOURS
    return write_page(
        path,
        'cold_start.html',
        {
            'facts': _facts(funnel | {'kept': len(kept)}, spending, budget),
            'funnel': bars(funnel | {'kept': len(kept)}, '{:,}'.format),
            'mined': bars(_histogram(right, samples), '{:,}'.format),
            'hard_of': f'at most {most_right} of {samples}',
            'reasons': bars(dict(Counter(reasons).most_common()), '{:,}'.format),
            'conduct': _conduct(kept, rejected),
            'categories': _categories(questions, right, most_right, kept, rejected),
            'spending': _spending(spending),
            'ended': ended,
        },
        viewer,
        scripts=('trajectory.js', 'trajectory_viewer.js'),
        filters={},
    )


def _marked(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """With the verdict on the answer, which the viewer shows, as accuracy."""

    def right(t: Trajectory) -> bool:
        against = ('wrong_answer', 'unscorable')
        return t.answer is not None and not any(reason in t.failure for reason in against)

    return [dataclasses.replace(t, reward={'accuracy': float(right(t))}) for t in trajectories]


def _facts(
    counts: Mapping[str, int],
    spending: Mapping[str, Mapping[str, Any]],
    budget: Mapping[str, float],
) -> list[tuple[str, str, str]]:
    """Label, value and a small line below of the page's headline."""

    def share(part: int, whole: int) -> str:
        return f'{100 * part / whole:.0f} %' if whole else '–'

    facts = [
        ('Questions', f'{counts["questions"]:,}', f'{counts["mined"]:,} mined'),
        ('Hard', f'{counts["hard"]:,}', f'{share(counts["hard"], counts["mined"])} of the mined'),
        (
            'Kept',
            f'{counts["kept"]:,}',
            f'{share(counts["kept"], counts["demonstrated"])} of the made',
        ),
    ]
    if spending:
        usd = sum(stage['usd'] for stage in spending.values())
        calls = sum(stage['calls'] for stage in spending.values())
        most = f'of {budget["usd"]:,g} allowed' if budget['usd'] else 'no limit'
        facts.append(('US dollars', f'{usd:,.2f}', f'{most}; {calls:,} requests'))
    return facts


def _histogram(right: Mapping[str, int], samples: int) -> dict[str, int]:
    counts = Counter(right.values())
    return {f'{i} of {samples}': counts[i] for i in range(samples + 1)} if right else {}


def _conduct(kept: Sequence[Trajectory], rejected: Sequence[Trajectory]) -> list[list[str]]:
    rows = [['', 'Trajectories', 'Turns', *(f'{name} calls' for name in TOOLS.values())]]
    for name, group in (('Kept', kept), ('Rejected', rejected)):
        calls = Counter(tool_of(turn.action) for t in group for turn in t.turns)
        turns = sum(len(t.turns) for t in group)
        means = [turns, *(calls[tool] for tool in TOOLS)]
        rows.append(
            [name, f'{len(group):,}', *(f'{n / len(group):.2f}' if group else '–' for n in means)]
        )
    return rows


def _categories(
    questions: Sequence[Question],
    right: Mapping[str, int],
    most_right: int,
    kept: Sequence[Trajectory],
    rejected: Sequence[Trajectory],
) -> list[list[str]]:
    def by_category(chosen: Sequence[Question]) -> Counter[str]:
        return Counter(question.category or 'none' for question in chosen)

    groups = [
        by_category(questions),
        by_category([q for q in questions if right.get(q.id, most_right + 1) <= most_right]),
        by_category([t.question for t in [*kept, *rejected]]),
        by_category([t.question for t in kept]),
    ]
    rows = [['Category', 'Questions', 'Hard', 'Demonstrated', 'Kept']]
    return rows + [[name, *(f'{g[name]:,}' for g in groups)] for name in sorted(groups[0])]


def _spending(spending: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = [['Stage', 'Requests', 'Replies', 'Failed', 'US dollars', 'of it assumed']]
    for name, stage in spending.items():
        failed = ', '.join(f'{n:,} {kind}' for kind, n in sorted(stage['failed'].items())) or 'none'
        usd, assumed = f'{stage["usd"]:,.4f}', f'{stage["assumed_usd"]:,.4f}'
        rows.append(
            [STAGES[name], f'{stage["calls"]:,}', f'{stage["replies"]:,}', failed, usd, assumed]
        )
    return rows if spending else []
