"""The harness card: everything beside the policy that a score depends on.

Scores of other harnesses differ by the prompt, the tools and their state, the order of the options,
the budgets and the judge; a number without them says little. The card stands beside every score, as
card.json, in the terminal and on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensesearch_jax.evaluation.benchmarks import BENCHMARKS, label, order

UNKNOWN = 'unknown'


def harness_card(
    *,
    agent: Mapping[str, Any],
    mode: str,
    environment: Mapping[str, Any],
    budgets: Mapping[str, Any],
    sampling: Mapping[str, Any],
    health: Mapping[str, Any] | None,
    sets: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The card.

    Args:
        agent: kind and name of what was evaluated.
        mode: direct, rag or agent.
        environment: protocol, tools, system prompt, and how much of a result is shown.
        budgets: turns, tokens and pixels.
        sampling: samples of a question, temperature, top-k, top-p and seed.
        health: of the tool server, as `ToolClient.health` gives it; None where it did not answer.
        sets: name to `set_summary.summarise_set`.
    """
    server = health or {}
    backends = server.get('backends', {})
    return {
        'agent': dict(agent),
        'mode': mode,
        'environment': dict(environment),
        'budgets': dict(budgets),
        'sampling': dict(sampling),
        'judge': backends.get('judge', UNKNOWN),
        'accuracy': 'a match with a reference, else the judge; the letter for questions with options',
        'tools': {
            'back_ends': {tool: name for tool, name in backends.items() if tool != 'judge'},
            'mode': server.get('mode', UNKNOWN),
            'answers': {t: n for t, n in server.get('cache', {}).items() if t in backends},
        },
        'sets': {name: _of_set(name, sets[name]) for name in sorted(sets, key=order)},
    }


def _of_set(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    expected = BENCHMARKS[name].questions if name in BENCHMARKS else None
    return {
        'questions': found['questions'],
        'published_questions': expected,
        'counted_samples': found['counted'],
        'searches': found['searches'],
        'retrieved': found['retrieved'],
        'right_letters': found['gold_letters'],
        'official_metric': found['official'],
    }


def card_lines(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card as names and texts, in reading order."""
    environment, budgets = card['environment'], card['budgets']
    tools = card['tools']
    ends = ', '.join(f'{tool} {name}' for tool, name in tools['back_ends'].items())
    kept = ', '.join(
        f'{tool} {counts.get("hits", 0)} of {counts.get("hits", 0) + counts.get("misses", 0)}'
        for tool, counts in tools['answers'].items()
        if counts.get('hits', 0) + counts.get('misses', 0)
    )
    lines = [
        ('Agent', _pairs(card['agent'])),
        ('Mode', card['mode']),
        (
            'Protocol',
            f'{environment["protocol"]}; tools: {", ".join(environment["tools"]) or "none"}',
        ),
        ('Results shown', _pairs(environment['shown'])),
        ('Budgets', _pairs(budgets)),
        ('Sampling', _pairs(card['sampling'])),
        ('Judge', f'{card["judge"]} ({card["accuracy"]})'),
        ('Tools', ends or UNKNOWN),
        ('Cache', f'{tools["mode"]}' + (f'; answers from the store: {kept}' if kept else '')),
    ]
    for name, found in card['sets'].items():
        lines.append((label(name), _set_line(found)))
    return lines


def _set_line(found: Mapping[str, Any]) -> str:
    said = f'{found["questions"]} questions'
    if found['published_questions'] not in (None, found['questions']):
        said += f' of the {found["published_questions"]} that the paper reports'
    parts = [said, f'{found["counted_samples"]} samples counted']
    for tool, searches in found['searches'].items():
        if searches['asked']:
            parts.append(
                f'{tool}: {searches["asked"]} asked, {100 * searches["found"]:.1f} % returned something'
            )
    if found['retrieved']:
        share = 100 * found['retrieved']
        parts.append(f'image search put images into {share:.1f} % of the prompts')
    if found['right_letters']:
        letters = ' '.join(f'{name} {100 * x:.0f} %' for name, x in found['right_letters'].items())
        parts.append(f'right option at {letters}')
    return '; '.join(parts)


def _pairs(values: Mapping[str, Any]) -> str:
    return ', '.join(f'{name} {value}' for name, value in values.items() if value not in ('', None))
