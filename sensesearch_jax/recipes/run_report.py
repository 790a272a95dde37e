"""The report of a training run that is started by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.evaluation.run_page import SHOWN, write_run_page
from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.alarm_log import FILE, read_alarms
from sensesearch_jax.runtime.machine import machine
from sensesearch_jax.runtime.metrics import read_metrics


def write_run_report(
    session: Session,
    title: str,
    trajectories: Mapping[str, Sequence[Trajectory]],
    about: str,
    protocol: Protocol,
) -> None:
    """Writes report.html into the workdir of the main process and says so.

    Args:
        session: of the run.
        title: of the page.
        trajectories: to show, by name.
        about: which these are, in a sentence.
        protocol: their text form.
    """
    if not multihost.is_main():
        return
    path = session.workdir / 'report.html'
    write_run_page(
        path,
        title,
        metrics=read_metrics(session.workdir / 'metrics.jsonl'),
        alarms=read_alarms(session.workdir / FILE),
        trajectories=trajectories,
        about=about,
        image_loader=session.client.image,
        protocol=protocol,
        config=session.config.to_dict(),
        machine=machine(),
        command=f'python -m sensesearch_jax.main {" ".join(sys.argv[1:])}',
    )
    print(f'{path}: curves and trajectories.')


def groups_to_show(paths: Sequence[Path]) -> dict[str, list[Trajectory]]:
    """The trajectories of some files' first questions by their number within the group, from 1, without
    their tokens, of which a large run's take gigabytes.
    """
    found: dict[int, list[Trajectory]] = {}
    asked: set[str] = set()
    named: set[tuple[str, int]] = set()
    for line in (line for path in paths if path.is_file() for line in open(path, 'rb')):
        if not line.endswith(b'\n'):
            continue  # torn, of a process that was killed and has not come again
        trajectory = Trajectory.from_json(json.loads(line))
        name = trajectory.question.id, trajectory.member
        if name in named:
            continue
        named.add(name)
        asked.add(trajectory.question.id)
        if len(asked) > SHOWN:
            break
        trajectory.prompt_tokens = []
        for turn in trajectory.turns:
            turn.tokens, turn.log_probs, turn.observation_tokens = [], [], []
        found.setdefault(trajectory.member, []).append(trajectory)
    return {str(member + 1): found[member] for member in sorted(found)}
