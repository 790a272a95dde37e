"""A benchmark of one's own, from pictures with boxes and questions: checked, and as hard as a policy finds it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.data.benchmark.checks import fault_lines, read_items, shares
from sensesearch_jax.data.benchmark.items import Item, Rules
from sensesearch_jax.data.plain_format import to_record
from sensesearch_jax.data.review.decisions import digest
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.session import (
    ASKED_AGAIN,
    LoadedPolicy,
    Session,
    append_trajectories,
    load_policy_directory,
    open_session,
)
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.journal import Journal
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.seeds import hash_seeds
from sensesearch_jax.runtime.workdir import Workdir, atomic_write

HARD, EASY = 'hard', 'easy'  # not once right in all samples, and right at least once


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Checks the items and has the policy answer the sound ones; writes benchmark/candidates.jsonl
    for `sensesearch_jax.data.review`, the faults of the others, and a summary.

    Raises:
        UserError: no item is sound, or tools or judge failed on some; started again it goes on.
    """
    benchmark = config.benchmark
    folder = workdir / 'benchmark'
    folder.mkdir(exist_ok=True)
    rules = Rules(
        benchmark.min_width, benchmark.min_height, benchmark.max_area, benchmark.max_likeness
    )
    items = read_items(Path(benchmark.data), rules)
    write_faults(folder / 'faults.jsonl', items)
    questions = [item.question for item in items if not item.faults]
    print(f'{benchmark.data}: {len(questions)} of {len(items)} items are sound')
    print('\n'.join(fault_lines(items)))
    if not questions:
        raise UserError(f'No item is sound; {folder / "faults.jsonl"} says why of each.')
    failed = 0
    if benchmark.samples:
        loaded = load_policy_directory(
            config.policy, config, make_mesh(config.mesh), config.rollout.dtype
        )
        with open_session(config, workdir) as session:
            found = difficulties(session, loaded, session.features(loaded), questions)
        failed = sum(q.id not in found for q in questions)
        questions = [rated(q, found.get(q.id), benchmark.samples) for q in questions]
    candidates = folder / 'candidates.jsonl'
    lines = (json.dumps(to_record(q), ensure_ascii=False) + '\n' for q in questions)
    atomic_write(candidates, ''.join(lines))
    summary = summarise(items, questions)
    atomic_write(folder / 'summary.json', json.dumps(summary, indent=1, ensure_ascii=False) + '\n')
    for name in ('category', 'difficulty'):
        print(f'{name}: ' + ', '.join(f'{k} {v["share"]:.1%}' for k, v in summary[name].items()))
    if failed:
        raise UserError(
            f'Tools or judge failed on {failed} of {len(questions)} items, whose difficulty is not known; mend '
            'them and start again with the same --workdir.'
        )
    print(f'Look at them: python -m sensesearch_jax.data.review {candidates}')


def difficulties(
    session: Session, loaded: LoadedPolicy, features: FeatureStore, questions: Sequence[Question]
) -> dict[str, int | None]:
    """Number of times that the policy, as an agent with the run's tools, is right in `benchmark.samples`.

    Those on disk stay, unless the question was changed. None where the prompt, or a tool's
    response, is too long for the run's capacities; a question on which tools or judge failed is
    left out.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
        questions: that are asked.
    """
    config, samples = session.config, session.config.benchmark.samples
    digests = {q.id: digest(q) for q in questions}
    folder = session.workdir / 'benchmark'
    with Journal(folder / 'difficulty.jsonl') as journal:
        right = {e['id']: e['right'] for e in journal if digests.get(e['id']) == e['of']}
        left = [q for q in questions if q.id not in right]
        if not left:
            return right
        engines = session.engines(
            loaded,
            asked=len(left),
            groups=config.rollout.groups,
            members=samples,
            sampling=Sampling(config.benchmark.temperature),
        )

        with Progress('ask', len(questions), initial=len(right), unit='item') as bar:

            def note(group: list[Trajectory]) -> None:
                name = group[0].question.id
                states = {t.state for t in group}
                if states & set(ASKED_AGAIN) - {SampleState.TOO_LONG}:
                    return  # how hard it is is not known
                append_trajectories(folder / 'trajectories.jsonl', group)
                right[name] = None if SampleState.TOO_LONG in states else count_right(group)
                entry = {'id': name, 'right': right[name], 'of': digests[name]}
                journal.append(entry, sync=False)
                bar.update(hard=sum(number == 0 for number in right.values()))

            stream = session.stream(engines, loaded, features)
            seed = config.seed
            tasks = [Task(q, hash_seeds(seed, f'benchmark-{q.id}', samples)) for q in left]
            stream.sample(tasks, session.scorer(), note)
    return right


def count_right(group: Sequence[Trajectory]) -> int:
    """Trajectories whose answer is right."""
    return sum(t.reward['accuracy'] == 1 for t in group)


def rated(question: Question, right: int | None, samples: int) -> Question:
    """The question with its difficulty.

    Args:
        question: as it was asked.
        right: how often the policy was right; None where that is not known.
        samples: of how many times.
    """
    if right is None:
        return dataclasses.replace(question, difficulty='')
    truth = question.truth | {'right': right, 'samples': samples}
    return dataclasses.replace(question, difficulty=EASY if right else HARD, truth=truth)


def write_faults(path: Path, items: Sequence[Item]) -> None:
    """Writes the items that are not sound, each with its faults."""
    unsound = ({'id': item.id, 'faults': dict(item.faults)} for item in items if item.faults)
    atomic_write(path, ''.join(json.dumps(entry, ensure_ascii=False) + '\n' for entry in unsound))


def summarise(items: Sequence[Item], questions: Sequence[Question]) -> dict:
    """Numbers of items, and shares of the sound ones by category and difficulty."""
    sound = [item for item in items if not item.faults]
    return {
        'items': len(items),
        'sound': len(sound),
        'median_area': round(sorted(item.area for item in sound)[len(sound) // 2], 5),
        'category': shares([q.category for q in questions]),
        'difficulty': shares([q.difficulty for q in questions]),
    }
