"""The figures of a sweep: accuracy over questions and seeds, paired differences, curves of training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.trajectory import SampleState, Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.benchmarks import label, named_by_set
from sensesearch_jax.evaluation.statistics import seeds_interval
from sensesearch_jax.evaluation.summary import COUNTED, category_order, cluster
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.workdir import atomic_write
from sensesearch_jax.sweep.plan import planned_before

OVERALL = 'overall'
LATER = 1 / 3  # of the steps, over which figures of training are means
POINTS = 60  # of a curve at most
TRAINED = 'base', 'sft', 'rl'  # stages with curves; an evaluation has its figures

Bounds = dict[str, float | None]


@dataclass(frozen=True)
class Evidence:
    """Files and numbers that one run of a setting has left.

    Args:
        setting: that it is of.
        seed: that tells it from the setting's other runs.
        trajectories: of its evaluation; none where it has none.
        metrics: records of its training's metrics.jsonl.
        folders: its workdirs, where its tool servers kept their images.
    """

    setting: str
    seed: int | str
    trajectories: Sequence[Trajectory]
    metrics: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]


def read_run(path: Path, setting: str, seed: int | str) -> list[Evidence]:
    """The trajectories and metrics of a run: one setting for each policy that it has evaluated.

    Args:
        path: a workdir, a folder of workdirs, or a file of trajectories.
        setting: of the run; with several evaluated policies each adds its name to it.
        seed: of the run.

    Raises:
        UserError: there is neither an evaluation nor a metrics.jsonl.
    """
    if path.is_file():
        return [Evidence(setting, seed, _trajectories(path), [], [path.parent.parent])]
    folders = [path, *sorted(f for f in path.glob('*') if f.is_dir())]
    files = [f for folder in folders for f in sorted(folder.glob('evaluation/*.jsonl'))]
    metrics = [r for folder in folders for r in read_metrics(folder / 'metrics.jsonl')]
    if not files and not metrics:
        raise UserError(
            f'{path} holds neither an evaluation nor metrics; give workdirs of runs, or files of trajectories that '
            'configs/evaluate.py wrote.'
        )
    if len(files) < 2:
        trajectories = [t for file in files for t in _trajectories(file)]
        return [Evidence(setting, seed, trajectories, metrics, folders)]
    found = [(f'{setting} {file.stem}', _trajectories(file)) for file in files]
    training = [Evidence(setting, seed, [], metrics, folders)] if metrics else []
    return [Evidence(name, seed, evaluated, [], folders) for name, evaluated in found] + training


def _trajectories(file: Path) -> list[Trajectory]:
    try:
        return read_trajectories(file)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{file} holds no trajectories as configs/evaluate.py writes them ({error}); give another file.'
        ) from error


def read_sweep(workdir: Path) -> tuple[list[Evidence], list[str]]:
    """The runs of a sweep's workdir that are over, and the names of the others."""
    found, left = [], []
    for name, run in planned_before(workdir).items():
        folder = workdir / 'runs' / name
        if all((folder / task / 'stages' / 'run.json').is_file() for task in run['tasks']):
            found.extend(read_run(folder, run['setting'], run['seed']))
        else:
            left.append(name)
    return found, left


def image_of(found: Sequence[Evidence], sha256: str) -> bytes | None:
    """An image of the runs' tool servers, by its hash; None where their folders are gone."""
    for folder in dict.fromkeys(folder for run in found for folder in run.folders):
        file = folder / 'tools' / 'images' / sha256[:2] / sha256
        if file.is_file():
            return file.read_bytes()
    return None


def summarise_sweep(
    found: Sequence[Evidence],
    unfinished: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of all settings, in the order in which they come.

    Args:
        found: the runs.
        unfinished: names of runs that are not over, which are only noted.
        confidence: of all intervals, in (0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap; equal seeds give equal figures.

    Returns:
        'settings': by name {'seeds', 'accuracy': by part ('overall', the sets
        where there are several, the categories) {'mean',
        'low', 'high', 'questions', 'by_seed'}, 'conduct': means of the evaluation, 'training': by
        stage and metric {'mean', 'low', 'high'}, mean over the last third of the steps and over
        seeds, and the seeds' lowest and highest}.
        'differences': for every two settings and part {'a', 'b', 'category' (the part), 'mean', 'low', 'high',
        'questions', 'seeds'}, a less b over the questions and seeds that both have; a setting of
        one run stands against each seed of the other.
        'curves': by stage, metric and setting {'steps', 'mean', 'low', 'high'} over the seeds.
        'unfinished', 'confidence', 'resamples', 'seed': as given.
    """
    bootstrap = {'level': confidence, 'resamples': resamples, 'seed': seed}
    settings: dict[str, list[Evidence]] = {}
    for one in found:
        settings.setdefault(one.setting, []).append(one)
    scores = {name: _scores(runs) for name, runs in settings.items()}
    return {
        'settings': {
            name: {
                'seeds': [run.seed for run in runs],
                'accuracy': {
                    part: _accuracy(scores[name], part, bootstrap) for part in _parts(scores[name])
                },
                'conduct': _conduct(runs),
                'training': _training(runs),
            }
            for name, runs in settings.items()
        },
        'differences': [
            difference
            for b, a in itertools.combinations(settings, 2)
            for difference in _differences(a, b, scores, bootstrap)
        ],
        'curves': _curves(settings),
        'unfinished': list(unfinished),
        'confidence': confidence,
        'resamples': resamples,
        'seed': seed,
    }


@dataclass(frozen=True)
class _Score:
    """The mean accuracy of a question in a run."""

    value: float
    parts: tuple[str, ...]  # of the questions that it belongs to
    cluster: tuple[str, ...]


Scores = dict[int | str, dict[tuple[str, str], _Score]]  # by seed, then by set and question


def _scores(runs: Iterable[Evidence]) -> Scores:
    found: Scores = {}
    for run in runs:
        of_questions: dict[tuple[str, str], list[Trajectory]] = {}
        several = len({t.question.source for t in run.trajectories}) > 1
        for t in named_by_set(run.trajectories):
            if t.state in COUNTED:
                of_questions.setdefault((t.question.source, t.question.id), []).append(t)
        if of_questions:
            found[run.seed] = scores = {}
            for key, members in of_questions.items():
                q = members[0].question
                parts = OVERALL, *([label(q.source)] if several else []), q.category
                mean = float(np.mean([t.reward['accuracy'] for t in members]))
                scores[key] = _Score(mean, tuple(dict.fromkeys(parts)), cluster(q))
    return found


def _parts(scores: Scores) -> list[str]:
    """'overall', sets and categories; the one category alone is 'overall'."""
    found = {p for questions in scores.values() for s in questions.values() for p in s.parts}
    named = sorted(found - {OVERALL}, key=category_order)
    return [OVERALL, *(named if len(named) > 1 else [])] if scores else []


def _accuracy(scores: Scores, part: str, bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (seed, key, s)
        for seed, questions in scores.items()
        for key, s in questions.items()
        if part in s.parts
    ]
    by_seed = {
        str(seed): float(np.mean([s.value for other, _, s in rows if other == seed]))
        for seed in scores
        if any(other == seed for other, _, _ in rows)
    }
    return {
        **_bounds([s.value for *_, s in rows], rows, bootstrap),
        'questions': len({key for _, key, _ in rows}),
        'by_seed': by_seed,
    }


def _differences(
    a: str, b: str, scores: Mapping[str, Scores], bootstrap: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """Accuracy of a less that of b, by slice."""
    of_a, of_b = scores[a], scores[b]
    if len(of_a) == 1 or len(of_b) == 1:
        pairs = list(itertools.product(of_a, of_b))
    else:
        pairs = [(seed, seed) for seed in of_a if seed in of_b]
    rows = [
        ((one, other), key, s)
        for one, other in pairs
        for key, s in of_a[one].items()
        if key in of_b[other]
    ]
    change = [s.value - of_b[seed[1]][key].value for seed, key, s in rows]
    for part in _parts(of_a) if rows else ():
        chosen = [i for i, (*_, s) in enumerate(rows) if part in s.parts]
        if chosen:
            of_part = [rows[i] for i in chosen]
            yield {
                'a': a,
                'b': b,
                'category': part,
                **_bounds([change[i] for i in chosen], of_part, bootstrap),
                'questions': len({key for _, key, _ in of_part}),
                'seeds': len(pairs),
            }


def _bounds(
    values: Sequence[float], rows: Sequence[tuple[Any, Any, _Score]], bootstrap: Mapping[str, Any]
) -> Bounds:
    return seeds_interval(
        values,
        seeds=[seed for seed, *_ in rows],
        clusters=[s.cluster for *_, s in rows],
        **bootstrap,
    ).bounds()


def _conduct(runs: Sequence[Evidence]) -> dict[str, float]:
    """Means of the evaluated trajectories over the seeds."""
    found = [[t for t in run.trajectories if t.state in COUNTED] for run in runs]
    found = [counted for counted in found if counted]

    def mean(value: Callable[[Trajectory], float]) -> float:
        return _short(np.mean([np.mean([value(t) for t in counted]) for counted in found]))

    if not found:
        return {}
    return {
        'format': mean(lambda t: t.reward['format']),
        'turns': mean(lambda t: len(t.turns)),
        'response_length': mean(lambda t: sum(len(turn.tokens) for turn in t.turns)),
        'truncated': mean(lambda t: t.state is SampleState.TRUNCATED),
        **{
            f'tool_calls/{tool}': mean(
                lambda t, tool=tool: sum(tool_of(turn.action) == tool for turn in t.turns)
            )
            for tool in TOOLS
        },
    }


def _series(run: Evidence) -> dict[tuple[str, str], dict[int, float]]:
    """Numbers by stage and metric, then by step; a step that was logged twice counts as the last."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for record in run.metrics:
        if record['stage'] not in TRAINED:
            continue
        for name, value in record['values'].items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault((record['stage'], name), {})[record['step']] = float(value)
    return found


def _training(runs: Sequence[Evidence]) -> dict[str, dict[str, Bounds]]:
    late: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for key, series in _series(run).items():
            last = max(series)
            values = [v for step, v in series.items() if step > last * (1 - LATER)]
            late.setdefault(key, []).append(float(np.mean(values)))
    found: dict[str, dict[str, Bounds]] = {}
    for (stage, name), values in late.items():
        bounds = {'mean': np.mean(values), 'low': min(values), 'high': max(values)}
        found.setdefault(stage, {})[name] = {end: _short(value) for end, value in bounds.items()}
    return found


def _curves(settings: Mapping[str, Sequence[Evidence]]) -> dict[str, Any]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, runs in settings.items():
        of_runs = [_series(run) for run in runs]
        for stage, metric in dict.fromkeys(key for series in of_runs for key in series):
            present = [s[stage, metric] for s in of_runs if (stage, metric) in s]
            steps = sorted(set().union(*present))
            if len(steps) < 2:
                continue
            at = np.array([[s.get(step, np.nan) for step in steps] for s in present])
            blocks = np.array_split(np.arange(len(steps)), min(len(steps), POINTS))
            # a metric that some steps do not have, such as the accuracy of a kind that was not asked
            known = np.ma.masked_invalid(at)
            thin = [known[:, block].mean(axis=1).filled(np.nan) for block in blocks]
            found.setdefault(stage, {}).setdefault(metric, {})[name] = {
                'steps': [_short(np.mean([steps[i] for i in block])) for block in blocks],
                'mean': [_short(np.nanmean(values)) for values in thin],
                'low': [_short(np.nanmin(values)) for values in thin],
                'high': [_short(np.nanmax(values)) for values in thin],
            }
    return found


def _short(value: float) -> float:
    """Four digits, for a file that stays small."""
    return float(f'{value:.4g}')


def write_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes the figures as summary.json, small enough to be committed, and the curves as curves.json."""
    figures = {name: value for name, value in summary.items() if name != 'curves'}
    for name, content in (('summary', figures), ('curves', summary['curves'])):
        atomic_write(folder / f'{name}.json', json.dumps(content, allow_nan=False) + '\n')
