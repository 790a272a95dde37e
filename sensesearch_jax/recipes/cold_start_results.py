"""Results of a cold start: what is kept and rejected of all processes, and the page about it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.cold_start.demonstrations import Judged
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.cold_start_page import write_cold_start_page
from sensesearch_jax.recipes.session import Session, read_trajectories
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.journal import Journal
from sensesearch_jax.runtime.workdir import atomic_write


def gathered(
    session: Session,
    found: Mapping[str, Judged],
    questions: Sequence[Question],
    hard: Sequence[Question],
    spent: Sequence[str],
    spending: Mapping[str, Any],
) -> list[Trajectory]:
    """The trajectories that nothing is said against, written to kept.jsonl, and the others to
    rejected.jsonl.

    The stage's result counts why others were rejected; the first process writes cold_start.html.

    Args:
        session: of the run.
        found: this process's trajectories and verdicts, by the questions' ids.
        questions: the pool of all processes.
        hard: of it those to demonstrate, in the order in which the first process keeps them.
        spent: why the run ends before all questions have one.
        spending: of this process's served models, by stage.

    Returns:
        The kept trajectories: of all processes in the first one, elsewhere this process's.

    Raises:
        UserError: the budget is spent, or none is kept.
    """
    workdir, folder = session.workdir, session.workdir / 'cold_start'
    pairs = [found[q.id] for q in hard if q.id in found]
    kept = [trajectory for trajectory, verdict in pairs if not verdict.reasons]
    rejected = [dataclasses.replace(t, failure=v.text) for t, v in pairs if v.reasons]
    counts = {
        'synthesised': Counter(all=len(pairs)),
        'kept': Counter(all=len(kept)),
        'rejected': Counter(reason for _, verdict in pairs for reason in verdict.reasons),
        'states': Counter(t.state.value for t, _ in pairs),
        'ok': Counter(all=sum(t.state is SampleState.OK for t in kept)),
        'spent': Counter(spent),
    }
    atomic_write(folder / 'spending.json', json.dumps(spending) + '\n')
    _write(folder / 'kept.jsonl', kept)
    _write(folder / 'rejected.jsonl', rejected)
    everywhere = [json.loads(text) for text in multihost.allgather_texts(json.dumps(counts))]
    total = {
        name: sum((Counter(of_one[name]) for of_one in everywhere), Counter()) for name in counts
    }
    multihost.barrier()
    ended = ''
    if total['spent']:
        ended = (
            f'{next(iter(total["spent"]))} {total["synthesised"]["all"]:,} of {len(hard):,} hard questions '
            f'have a trajectory, of which {total["kept"]["all"]:,} are kept in {folder / "kept.jsonl"}.'
        )
    if multihost.is_main():
        kept = _of_all(folder, kept, 'kept.jsonl', hard)
        rejected = _of_all(folder, rejected, 'rejected.jsonl', hard)
        config = session.config
        write_cold_start_page(
            folder / 'cold_start.html',
            questions=questions,
            right=_mined(folder),
            samples=config.mine.samples,
            most_right=config.mine.most_right,
            kept=kept,
            rejected=rejected,
            reasons=total['rejected'],
            spending=_spending(folder),
            budget=config.budget.to_dict(),
            ended=ended,
            image_loader=session.client.image,
            protocol=session.protocol,
        )
    if ended:
        raise UserError(ended)
    result = {
        'synthesised': total['synthesised']['all'],
        'kept': total['kept']['all'],
        'rejected': dict(total['rejected']),
        'states': dict(total['states']),
    }
    workdir.mark_done('cold_start', result)
    if not total['ok']:
        raise UserError(
            f'Validation kept none of {result["synthesised"]} trajectories ({result["rejected"]}); '
            f'look at {folder / "cold_start.html"}.'
        )
    return kept


def _folders(folder: Path) -> list[Path]:
    """The same folder of all processes."""
    return [workdir / folder.name for workdir in multihost.folders(folder.parent)]


def _of_all(
    folder: Path, own: list[Trajectory], name: str, questions: Sequence[Question]
) -> list[Trajectory]:
    """The main process's trajectories and those of the others' files, in the questions' order."""
    others = _folders(folder)[1:]
    if not others:
        return own
    by_id = {t.question.id: t for t in own}
    by_id |= {t.question.id: t for other in others for t in read_trajectories(other / name)}
    every = [dataclasses.replace(by_id[q.id], question=q) for q in questions if q.id in by_id]
    _write(folder / name, every)
    return every


def _mined(folder: Path) -> dict[str, int]:
    right: dict[str, int] = {}
    for each in _folders(folder):
        with Journal(each / 'mined.jsonl') as journal:
            right |= {line['id']: line['right'] for line in journal}
    return right


def _spending(folder: Path) -> dict[str, dict[str, Any]]:
    """Sums over all processes, by stage."""
    sums: dict[str, dict[str, Any]] = {}
    for each in _folders(folder):
        for stage, spent in json.loads((each / 'spending.json').read_text()).items():
            whole = sums.setdefault(stage, defaultdict(int, failed=Counter()))
            whole['failed'] += Counter(spent['failed'])
            for name in ('calls', 'replies', 'usd', 'assumed_usd'):
                whole[name] += spent[name]
    return sums


def _write(path: Path, trajectories: Sequence[Trajectory]) -> None:
    atomic_write(path, ''.join(json.dumps(t.to_json()) + '\n' for t in trajectories))
