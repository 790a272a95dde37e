"""The numbers of an evaluation: per run, category and difficulty of questions, with intervals, and
differences of runs.

A *run* is one policy in one setting over the held-out questions ('base', 'sft', 'rl', 'rl without
crop'). The result is plain JSON (`summary.json`), read by the report and by `format_table`; nothing
is computed a second time there.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sensesearch_jax.agent.observations import NO_RESULTS
from sensesearch_jax.agent.protocol import TOOLS, tool_of
from sensesearch_jax.agent.trajectory import Observation, Question, SampleState, Trajectory
from sensesearch_jax.evaluation.paper_table import number, percent, terminal
from sensesearch_jax.evaluation.statistics import mean_interval, mean_of, paired_difference

SEARCHES = ('text_search', 'image_search')
COUNTED = (SampleState.OK, SampleState.TRUNCATED)  # the rest says nothing about the policy

# in the order they are reported; others follow
CATEGORIES = ('search', 'search_only', 'perception')

# What is compared where both runs are there: (a, b) gives a − b.
COMPARISONS = (('rl', 'sft'), ('sft', 'base'), ('rl', 'rl without crop'))


def summarise(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Summarises evaluation runs.

    Questions about one picture are not independent, so every interval is a percentile bootstrap
    that draws pictures (`Question.images`), not questions; a question without one stands alone.

    Args:
      runs: run name to its trajectories, each as `Trajectory.to_json` gives it; the order of names
          is kept.
      comparisons: pairs (a, b) of run names; a pair of which a run is missing is left out.
      confidence: of all intervals, in (0, 1).
      resamples: bootstrap resamples.
      seed: of the bootstrap; equal seeds give equal summaries.

    Returns:
      'runs': run name to {'overall': block, 'by_category': {category: block}, 'by_difficulty':
        {difficulty: block}, 'by_category_and_difficulty': {category: {difficulty: block}}}. A block
        holds 'trajectories', 'questions', 'pictures', 'counted' (numbers); 'accuracy'
        {'mean', 'low', 'high'}; 'format' (rate); 'turns'; 'tool_calls' {tool: per trajectory};
        'searches' (number of search calls); 'search_success' (share of them that returned results);
        'states' {state: share}; 'failures' {state: {'count', 'such_as': the reason of the first
        one}} of those that do not count and say why; 'tool_wait_s' (seconds per trajectory). Rates
        are in [0, 1]. Accuracy, format, turns and calls are over the counted trajectories, those in
        state ok or truncated; what has nothing to be computed from is None, and so are the ends of
        an interval over a single picture.
      'differences': list of {'a', 'b', 'category' ('overall' or a category), 'questions', 'mean',
        'low', 'high'}: accuracy of a minus accuracy of b over the questions that both runs answered,
        paired.
      'confidence', 'resamples', 'seed': as given.

    Raises:
      ValueError: a run is empty, or a counted trajectory has no accuracy in its reward.
    """
    parsed = {
        name: [Trajectory.from_json(dict(t)) for t in trajectories]
        for name, trajectories in runs.items()
    }
    for name, trajectories in parsed.items():
        if not trajectories:
            raise ValueError(
                f'run {name!r} has no trajectories; leave it out or evaluate it first.'
            )

    bootstrap = {'level': confidence, 'resamples': resamples, 'seed': seed}
    return {
        'runs': {name: _slices(trajectories, bootstrap) for name, trajectories in parsed.items()},
        'differences': [
            {'a': a, 'b': b, **difference}
            for a, b in comparisons
            if a in parsed and b in parsed
            for difference in _differences(parsed[a], parsed[b], bootstrap)
        ],
        'confidence': confidence,
        'resamples': resamples,
        'seed': seed,
    }


def format_table(summary: Mapping[str, Any]) -> str:
    """`summarise`'s result as plain text for a terminal; 113 columns for run names of up to 15
    letters.
    """
    rows = ['run|category|n|accuracy||format|turns|crop|i.search|t.search|found|failed'.split('|')]
    for name, run in summary['runs'].items():
        overall = [('overall', run['overall'])] if len(run['by_category']) > 1 else []
        for category, block in [*run['by_category'].items(), *overall]:
            calls = block['tool_calls'] or {}
            failed = sum(
                share for state, share in block['states'].items() if state not in _COUNTED_NAMES
            )
            rows.append(
                (
                    name,
                    category,
                    str(block['counted']),
                    percent((block['accuracy'] or {}).get('mean')),
                    _range(block['accuracy']),
                    percent(block['format']),
                    number(block['turns']),
                    *(
                        number(calls.get(tool))
                        for tool in ('image_crop', 'image_search', 'text_search')
                    ),
                    percent(block['search_success']),
                    percent(failed),
                )
            )
    lines = [terminal(rows, right=(2, 3, *range(5, 12)))]
    level = f'{summary["confidence"]:.0%}'
    lines += [
        f'Rates in %, {level} intervals in brackets; turns and calls per trajectory;',
        'found: searches that returned results; failed: trajectories that do not count.',
    ]
    for name, run in summary['runs'].items():
        for state, failure in run['overall']['failures'].items():
            lines.append(f'{name}: {failure["count"]} {state}, such as: {failure["such_as"]}')
    if summary['differences']:
        rows = [('difference in accuracy', 'category', 'n', 'points', '')]
        for d in summary['differences']:
            rows.append(
                (
                    f'{d["a"]} − {d["b"]}',
                    d['category'],
                    str(d['questions']),
                    f'{100 * d["mean"]:+.1f}',
                    _range(d, '+.1f'),
                )
            )
        lines += ['', terminal(rows, right=(2, 3))]
    return '\n'.join(lines)


def category_order(category: str) -> tuple[int, str]:
    """Sort key that puts categories in the order of `CATEGORIES`, unknown ones after them."""
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


_COUNTED_NAMES = {state.value for state in COUNTED}


def _slices(trajectories: Sequence[Trajectory], bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    by_category = _grouped(trajectories, lambda t: t.question.category, order=category_order)
    return {
        'overall': _block(trajectories, bootstrap),
        'by_category': {
            category: _block(members, bootstrap) for category, members in by_category.items()
        },
        'by_difficulty': {
            k: _block(v, bootstrap) for k, v in _grouped(trajectories, _difficulty).items()
        },
        'by_category_and_difficulty': {
            category: {k: _block(v, bootstrap) for k, v in _grouped(members, _difficulty).items()}
            for category, members in by_category.items()
        },
    }


def cluster(question: Question) -> tuple[str, ...]:
    """Equal for questions that are not independent: those that the set says so of (`truth['group']`,
    such as the option orders of one question), and those about the same pictures.
    """
    if group := question.truth.get('group'):
        return ('group', str(group))
    return question.images or ('question', question.id)


def found_something(observation: Observation) -> bool:
    """Whether a search returned results."""
    return observation.ok and observation.parts != (NO_RESULTS,)


def _difficulty(trajectory: Trajectory) -> str:
    return trajectory.question.difficulty


def _grouped(
    trajectories: Iterable[Trajectory],
    key: Callable[[Trajectory], str],
    order: Callable[[str], Any] = str,
) -> dict[str, list[Trajectory]]:
    groups = defaultdict(list)
    for trajectory in trajectories:
        groups[key(trajectory)].append(trajectory)
    return {name: groups[name] for name in sorted(groups, key=order)}


def _block(trajectories: Sequence[Trajectory], bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    counted = [t for t in trajectories if t.state in COUNTED]
    states = Counter(t.state for t in trajectories)
    observations = [
        (tool_of(turn.action), turn.observation)
        for t in trajectories
        for turn in t.turns
        if turn.observation
    ]
    searches = [found_something(o) for tool, o in observations if tool in SEARCHES]
    calls = Counter(tool_of(turn.action) for t in counted for turn in t.turns)
    accuracy = mean_interval(
        [_accuracy(t) for t in counted],
        clusters=[cluster(t.question) for t in counted],
        **bootstrap,
    )
    return {
        'trajectories': len(trajectories),
        'questions': len({t.question.id for t in trajectories}),
        'pictures': len({t.question.images for t in trajectories if t.question.images}),
        'counted': len(counted),
        'accuracy': accuracy.bounds() if counted else None,
        'format': mean_of([t.reward.get('format', 0) > 0 for t in counted]),
        'turns': mean_of([len(t.turns) for t in counted]),
        'tool_calls': {tool: calls[tool] / len(counted) for tool in TOOLS} if counted else None,
        'searches': len(searches),
        'search_success': mean_of(searches),
        'states': {state.value: states[state] / len(trajectories) for state in SampleState},
        'failures': _failures(trajectories),
        'tool_wait_s': sum(observation.latency_s for _, observation in observations)
        / len(trajectories),
    }


def _failures(trajectories: Sequence[Trajectory]) -> dict[str, dict[str, Any]]:
    """By state, how many do not count and what the first of them says."""
    found: dict[str, dict[str, Any]] = {}
    for t in trajectories:
        if t.failure and t.state not in COUNTED:
            found.setdefault(t.state.value, {'count': 0, 'such_as': t.failure})['count'] += 1
    return found


def _differences(
    a: Sequence[Trajectory], b: Sequence[Trajectory], bootstrap: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """Accuracy of a minus b, overall and per category, over the questions that count in both runs."""
    of_a, of_b = (
        _grouped((t for t in run if t.state in COUNTED), lambda t: t.question.id) for run in (a, b)
    )
    shared = [question_id for question_id in of_a if question_id in of_b]
    questions = {question_id: of_a[question_id][0].question for question_id in shared}
    categories = sorted({question.category for question in questions.values()}, key=category_order)
    # One category alone is not "overall".
    for category in ('overall', *categories) if len(categories) > 1 else categories:
        chosen = [
            question_id
            for question_id in shared
            if category in ('overall', questions[question_id].category)
        ]
        scores_b, scores_a = (
            [mean_of([_accuracy(t) for t in run[question_id]]) for question_id in chosen]
            for run in (of_b, of_a)
        )
        clusters = [cluster(questions[question_id]) for question_id in chosen]
        difference = paired_difference(scores_b, scores_a, clusters=clusters, **bootstrap)
        yield {'category': category, 'questions': len(chosen), **difference.bounds()}


def _accuracy(trajectory: Trajectory) -> float:
    if 'accuracy' not in trajectory.reward:
        raise ValueError(
            f'the trajectory of question {trajectory.question.id!r} is in state {trajectory.state.value!r} '
            "but has no 'accuracy' in its reward; score it before summarising."
        )
    return float(trajectory.reward['accuracy'])


def _range(bounds: Mapping[str, float | None] | None, spec: str = '.1f') -> str:
    if not bounds or bounds['low'] is None:
        return ''
    return f'[{100 * bounds["low"]:{spec}}, {100 * bounds["high"]:{spec}}]'
