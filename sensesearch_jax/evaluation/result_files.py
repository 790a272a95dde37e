"""The files of an evaluation's results: results.jsonl, summary.json, card.json, table.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.benchmarks import order
from sensesearch_jax.evaluation.harness_card import card_lines
from sensesearch_jax.evaluation.paper_table import (
    conduct_rows,
    markdown,
    metric_rows,
    paper_rows,
    sample_rows,
    slice_rows,
    terminal,
)
from sensesearch_jax.evaluation.set_summary import summarise_set
from sensesearch_jax.runtime.workdir import atomic_write

RESULTS = 'results.jsonl'


def summarise_sets(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name of each set to its numbers, in the order of the paper."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_set.setdefault(row['set'], []).append(row)
    return {name: summarise_set(by_set[name]) for name in sorted(by_set, key=order)}


def write_rows(workdir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes results.jsonl, a line per sample."""
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    atomic_write(workdir / RESULTS, text)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl.

    Raises:
        UserError: there is no such file.
    """
    path = Path(workdir) / RESULTS
    if not path.is_file():
        raise UserError(
            f'{path} is not there; give the workdir of an evaluation (configs/evaluate.py) that has ended.'
        )
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def tables(name: str, sets: Mapping[str, Mapping[str, Any]], card: Mapping[str, Any]) -> str:
    """The results and their harness card as Markdown.

    Args:
        name: of the run.
        sets: see `summarise_sets`.
        card: see `harness_card.harness_card`.
    """
    parts = [
        ('', markdown(paper_rows({name: sets}))),
        ('## Several samples', markdown(sample_rows({name: sets}))),
        ('## Other metrics', markdown(metric_rows({name: sets}))),
        ('## By category', markdown(slice_rows(sets, 'category'))),
        ('## By difficulty', markdown(slice_rows(sets, 'difficulty'))),
        ('## Conduct', markdown(conduct_rows(sets))),
        ('## Harness card', markdown([['Field', ''], *map(list, card_lines(card))])),
    ]
    shown = [f'{title}\n\n{text}' if title else text for title, text in parts if text]
    return f'# Evaluation of {name}\n\n' + '\n'.join(shown)


def printed(name: str, sets: Mapping[str, Mapping[str, Any]], card: Mapping[str, Any]) -> str:
    """The same for a terminal: card, scores, conduct.

    Args:
        name: of the run.
        sets: see `summarise_sets`.
        card: see `harness_card.harness_card`.
    """
    lines = card_lines(card)
    width = max(len(field) for field, _ in lines)
    shown = '\n'.join(f'{field:<{width}}  {value}' for field, value in lines)
    runs = {name: sets}
    found = (paper_rows(runs), sample_rows(runs), metric_rows(runs), conduct_rows(sets))
    return '\n\n'.join(filter(None, [shown, *map(terminal, found)]))
