"""The numbers of one benchmark: Pass@1 and Avg@k, the official metric, slices, and conduct."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sensesearch_jax.agent.protocol import TOOLS
from sensesearch_jax.evaluation.metrics import simple_vqa
from sensesearch_jax.evaluation.metrics.table import METRICS, OFFICIAL
from sensesearch_jax.evaluation.results import FINISHES
from sensesearch_jax.evaluation.statistics import mean_interval, mean_of
from sensesearch_jax.evaluation.summary import SEARCHES
from tools_server.answer_matching.gold import gold_letters

Row = Mapping[str, Any]
Bounds = dict[str, float | None] | None
BOOTSTRAP = {'level': 0.95, 'resamples': 10_000, 'seed': 0}


def summarise_set(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of the samples of one set.

    Every interval is a percentile bootstrap over clusters: samples of one question, questions about
    one image and the option orders of one question are drawn together.

    Args:
        rows: of results.jsonl, all of one set.

    Returns:
        'set'; 'questions', 'samples' (of a question), 'counted' (samples that say something about
        the agent, over which everything below is); 'pass_at_1' of the first samples and 'avg_at_k'
        of all, {'mean', 'low', 'high'}; 'pass_at_k', the share of questions with a right sample;
        'official', the name of the set's own metric, or None; 'metrics' {name: {'mean', 'low',
        'high', 'source'}}; 'official_parts' (see `_parts`); 'by_category' and 'by_difficulty'
        {name: {'questions', 'accuracy', 'official'}}; 'category_mean', the mean over the
        categories; 'judge' (shares of samples: 'matched' with a reference, 'judged_right' by the
        judge alone, 'wrong', and 'exact', equal word for word); 'finishes' {reason: share of all
        samples}; 'tool_calls' {tool: per sample}; 'searches' {tool: {'asked', 'found' (share)}};
        'retrieved', the share of samples with images of search results in the prompt;
        'format', 'turns', 'tokens', 'tool_wait_s' per sample; 'gold_letters' {letter: share of the
        questions with options of which it is right}.
    """
    counted = [row for row in rows if row['counted']]
    official = OFFICIAL.get(rows[0]['set'])
    samples = 1 + max(row['sample'] for row in rows)
    by_category = _slices(counted, 'category', official)
    means = [part['accuracy']['mean'] for part in by_category.values()]
    return {
        'set': rows[0]['set'],
        'questions': len({row['id'] for row in rows}),
        'samples': samples,
        'counted': len(counted),
        'pass_at_1': _interval([row for row in counted if row['sample'] == 0], _accuracy),
        'avg_at_k': _interval(counted, _accuracy),
        'pass_at_k': mean_of(_best(counted)),
        'official': official,
        'metrics': {
            name: {**_metric(counted, name), 'source': METRICS[name].source}
            for name in dict.fromkeys(name for row in counted for name in row['metrics'])
        },
        'official_parts': _parts(official, counted, by_category),
        'by_category': by_category,
        'by_difficulty': _slices(counted, 'difficulty', official),
        'category_mean': mean_of(means),
        'judge': _judge(counted),
        'finishes': _shares([row['finish'] for row in rows], FINISHES),
        'tool_calls': {
            tool: mean_of([row['tool_calls'][tool] for row in counted]) for tool in TOOLS
        },
        'searches': {tool: _searches(counted, tool) for tool in SEARCHES},
        'retrieved': mean_of([row['retrieved'] > 0 for row in counted]),
        **{name: mean_of([row[name] for row in counted]) for name in ('format', 'turns')},
        'tokens': mean_of([row['tokens'] for row in counted if row['tokens'] is not None]),
        'tool_wait_s': mean_of([row['tool_wait_s'] for row in rows]),
        'gold_letters': _gold_letters(rows),
    }


def _accuracy(row: Row) -> float:
    return row['accuracy']


def _metric(rows: Sequence[Row], name: str) -> Bounds:
    """Over the rows that have the metric: a set may have open questions and ones with options."""
    return _interval([row for row in rows if name in row['metrics']], lambda r: r['metrics'][name])


def _interval(rows: Sequence[Row], score: Callable[[Row], float]) -> Bounds:
    if not rows:
        return None
    return mean_interval(
        [score(row) for row in rows], clusters=[tuple(row['cluster']) for row in rows], **BOOTSTRAP
    ).bounds()


def _slices(rows: Sequence[Row], field: str, official: str | None) -> dict[str, Any]:
    """By a field that the set has; nothing where it names none."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[field]].append(row)
    if set(groups) <= {''}:
        return {}
    return {
        name: {
            'questions': len({row['id'] for row in groups[name]}),
            'accuracy': _interval(groups[name], _accuracy),
            'official': _metric(groups[name], official) if official else None,
        }
        for name in sorted(groups)
    }


def _best(rows: Sequence[Row]) -> list[float]:
    """1 for each question with a right sample, 0 for the others."""
    best: dict[str, float] = {}
    for row in rows:
        best[row['id']] = max(best.get(row['id'], 0.0), row['accuracy'])
    return list(best.values())


def _judge(rows: Sequence[Row]) -> dict[str, float | None]:
    return {
        'matched': mean_of([row['matched'] for row in rows]),
        'judged_right': mean_of([row['accuracy'] == 1 and not row['matched'] for row in rows]),
        'wrong': mean_of([row['accuracy'] < 1 for row in rows]),
        'exact': mean_of([row['metrics']['exact'] for row in rows if 'exact' in row['metrics']]),
    }


def _parts(
    official: str | None, rows: Sequence[Row], by_category: Mapping[str, Any]
) -> dict[str, float]:
    """The shares that SimpleVQA reports beside its F-score; InfoSeek's harmonic mean over its splits
    of unseen questions and unseen entities.
    """
    if official == 'simple_vqa':
        return simple_vqa.summary(
            [simple_vqa.grade(row['answer'] or '', row['accuracy'] == 1) for row in rows]
        )
    splits = [part for name, part in by_category.items() if 'unseen_' in name]
    if official == 'infoseek' and len(splits) == len(by_category) == 2:
        means = [part['official']['mean'] for part in splits]
        return {'harmonic_mean': 2 / sum(1 / mean for mean in means) if min(means) > 0 else 0.0}
    return {}


def _searches(rows: Sequence[Row], tool: str) -> dict[str, float | None]:
    asked = sum(row['searches'][tool]['asked'] for row in rows)
    found = sum(row['searches'][tool]['found'] for row in rows)
    return {'asked': asked, 'found': found / asked if asked else None}


def _gold_letters(rows: Sequence[Row]) -> dict[str, float]:
    """Frequency of each letter as the right one: a set with the right option always first shows here."""
    first = {row['id']: row for row in rows if row['choices']}.values()
    letters = Counter(
        letter for row in first for letter in gold_letters(row['references'], row['choices'])
    )
    return {letter: letters[letter] / len(first) for letter in sorted(letters)}


def _shares(values: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    counts = Counter(values)
    return {name: counts[name] / len(values) for name in names}
