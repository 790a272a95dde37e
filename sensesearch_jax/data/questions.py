"""The questions of a run, from the sources that its config names."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.mixing import Pool, in_turn, unique_ids
from sensesearch_jax.data.names import generator
from sensesearch_jax.data.sources import (
    Found,
    Source,
    check_source,
    is_generated,
    parse_sources,
    read_source,
)
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

# The split that a stage takes of a source that has several and is not told which.
USUAL_SPLITS = {'train': 'train', 'rl': 'train', 'validation': 'validation', 'eval': 'test'}
STAGES = tuple(USUAL_SPLITS)


def check_sources(data: ConfigDict, stage: str) -> None:
    """Whether the sources of a stage are there, as far as can be told without reading them.

    Args:
        data: the config's part of that name.
        stage: one of `STAGES`.

    Raises:
        UserError: one is not there, or is in none of the layouts.
    """
    for source in parse_sources(f'data.{stage}', data[stage]):
        with _named(f'data.{stage}'):
            if stage in ('validation', 'eval') and source.weight:
                raise UserError(
                    f'{source.shown} has a weight, but each of its questions is asked once; leave it out.'
                )
            if is_generated(source):
                generator(source.name).check_source(source)
            else:
                check_source(source, data.dir, USUAL_SPLITS[stage])


def prepare_sources(data: ConfigDict) -> None:
    """Makes what the tools must know of generated sources, before a tool server starts.

    Args:
        data: the config's part of that name. A stage that the run has not may name no source.
    """
    stages = (stage for stage in STAGES if data.get(stage))
    sources = (s for stage in stages for s in parse_sources(f'data.{stage}', data[stage]))
    for name in {source.name for source in sources if is_generated(source)}:
        generator(name).prepare()


def questions_of(workdir: Workdir, data: ConfigDict, stage: str) -> list[Question]:
    """Every question of a stage once, as `mixing.in_turn` orders them.

    Args:
        workdir: of the run.
        data: the config's part of that name.
        stage: one of `STAGES`.

    Raises:
        UserError: see `pools_of`.
    """
    return in_turn(pools_of(workdir, data, stage))


def pools_of(workdir: Workdir, data: ConfigDict, stage: str) -> list[Pool]:
    """The questions of a stage by source: read or made once, and kept in the workdir.

    Args:
        workdir: of the run.
        data: the config's part of that name.
        stage: one of `STAGES`.

    Raises:
        UserError: a source is not there, cannot be read, has too many records that are no
            questions, or has no question at all.
    """
    folder, mark = workdir / 'questions', f'questions-{stage}'
    file = folder / f'{stage}.jsonl'
    if not workdir.stage_done(mark):
        pools = []
        for number, source in enumerate(parse_sources(f'data.{stage}', data[stage])):
            with _named(f'data.{stage}'):
                drawn = _drawn(source, data, stage, folder / stage / str(number))
            pools.append(Pool(source.label, drawn, float(source.weight)))
        pools = unique_ids(pools)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(_to_json(pool), ensure_ascii=False) for pool in pools)
        atomic_write(file, ''.join(f'{line}\n' for line in lines))
        workdir.mark_done(mark, [[pool.source, len(pool.questions)] for pool in pools])
    return [_from_json(json.loads(line)) for line in file.read_text('utf-8').splitlines()]


def _drawn(source: Source, data: ConfigDict, stage: str, folder: Path) -> list[Question]:
    """The questions that a run takes of a source.

    Args:
        source: as the config names it.
        data: the config's part of that name.
        stage: one of `STAGES`.
        folder: for pictures that are made.
    """
    seed = data.seed if source.seed is None else source.seed
    usual = USUAL_SPLITS[stage]
    if is_generated(source):
        made = dataclasses.replace(source, seed=seed, split=source.split or usual)
        return generator(source.name).questions(made, folder)
    found = read_source(source.path or source.name, source.split, source.name, data.dir, usual)
    check_faults(source, found, data.max_bad_share)
    questions = [q for q in found.questions if source.category in ('', q.category)]
    if not questions:
        there = sorted({q.category for q in found.questions})
        raise UserError(
            f'{source.shown} has no question of category {source.category!r}; it has {there}.'
        )
    if source.limit and source.limit < len(questions):
        random = np.random.default_rng([seed, zlib.crc32(source.label.encode())])
        chosen = sorted(random.choice(len(questions), source.limit, replace=False))
        questions = [questions[i] for i in chosen]
    return questions


def check_faults(source: Source, found: Found, max_bad_share: float) -> None:
    """Says which records are no questions.

    Args:
        source: as the config names it.
        found: of it.
        max_bad_share: of its records that may be bad.

    Raises:
        UserError: too many are.
    """
    total = len(found.questions) + found.faults.count
    if not total:
        raise UserError(f'{source.shown} holds no record.')
    if not found.faults.count:
        return
    lines = '\n  '.join(found.faults.lines())
    bad = f'{found.faults.count} of {total} records of {source.shown} are no questions'
    if found.faults.count > max_bad_share * total or not found.questions:
        raise UserError(
            f'{bad}, more than data.max_bad_share {max_bad_share:g} allows. Mend them; '
            f'`python -m sensesearch_jax.data.check {source.shown}` tells more.\n  {lines}'
        )
    print(f'sensesearch_jax: {bad} and are left out.\n  {lines}', file=sys.stderr)


@contextlib.contextmanager
def _named(field_name: str) -> Iterator[None]:
    """Within it, errors of a source begin with the field that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{field_name}: {error}') from error


def _to_json(pool: Pool) -> dict[str, Any]:
    return vars(pool) | {'questions': [question.to_json() for question in pool.questions]}


def _from_json(value: dict[str, Any]) -> Pool:
    questions = [Question.from_json(question) for question in value['questions']]
    return Pool(**value | {'questions': questions})
