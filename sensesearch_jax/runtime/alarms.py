"""Alarms: rules on the metrics of a stage that tell when a run goes wrong.

A rule compares the mean of the last `window` steps with a limit, or with the mean of the stage's
first `reference` steps. It is silent where its metrics were not written, where its limit is 0 or not
given, and, if it compares with the first steps, until `window` more have been made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Steps = Sequence[Mapping[str, float]]  # metrics of a stage's steps, from its first one on
Limits = Mapping[str, float]  # the fields of the config's `alarms` that are numbers

TOOL_CALLS = 'tool_calls/'


class Alarm(NamedTuple):
    """An alarm: its name and what it found, in a sentence that names the limit's field."""

    name: str
    sentence: str


def alarms_of(steps: Steps, limits: Limits) -> list[Alarm]:
    """The alarms after the last of a stage's steps.

    Args:
        steps: metrics by name, NaN for what is not finite.
        limits: `window` and `reference` in steps, and the limits of the rules, by the names of the
            fields of the config's `alarms`.

    Returns:
        In the order of `RULES`; none where all is well.
    """
    history = History(steps, limits)
    found = ((name, rule(history)) for name, rule in RULES.items())
    return [Alarm(name, sentence) for name, sentence in found if sentence]


class History:
    """Means of metrics over the first and the last steps; NaN, which no comparison holds for, where
    there are too few steps or the metric was not written.
    """

    def __init__(self, steps: Steps, limits: Limits) -> None:
        self.steps, self.limits = steps, limits

    def limit(self, name: str) -> float:
        """A limit of a rule; NaN if the rule is switched off."""
        return self.limits.get(name) or math.nan

    def last(self, metric: str, count: float | None = None) -> float:
        """Mean over the last `count` steps, by default those of the window."""
        count = int(count or self.limits['window'])
        return _mean(self.steps[-count:] if len(self.steps) >= count else (), metric)

    def first(self, metric: str, later: float | None = None) -> float:
        """Mean over the first `reference` steps, once there are `later` steps behind them, by
        default those of the window.
        """
        count = int(self.limits.get('reference', 0))
        enough = len(self.steps) >= count + int(later or self.limits['window'])
        return _mean(self.steps[:count] if count and enough else (), metric)


def _mean(steps: Steps, metric: str) -> float:
    """Mean of a metric, or the sum of all metrics whose names begin with `metric`, if it ends in '/'."""
    if metric.endswith('/'):
        names = [name for name in (steps[0] if steps else ()) if name.startswith(metric)]
        return sum(_mean(steps, name) for name in names) if names else math.nan
    values = [step.get(metric, math.nan) for step in steps]
    return sum(values) / len(values) if values else math.nan


def _reaches(
    name: str, metric: str, sentence: str, steps: int | None = None
) -> Callable[[History], str]:
    """The rule that a metric is to stay below the limit of that name.

    Args:
        name: of the limit, which is the alarm's.
        metric: whose mean is looked at.
        sentence: with {value} and {limit}.
        steps: the last so many; None: those of the window.
    """

    def rule(h: History) -> str:
        value, limit = h.last(metric, steps), h.limit(name)
        shown = f'alarms.{name} {limit:g}'
        return sentence.format(value=value, limit=shown) if value >= limit else ''

    return rule


def _tool_use(h: History) -> str:
    now, before = h.last(TOOL_CALLS), h.first(TOOL_CALLS)
    if now < h.limit('tool_use') * before:
        return (
            f'Tool use is dying out: {now:.2f} calls per trajectory, {before:.2f} in the first steps '
            f'(alarms.tool_use {h.limit("tool_use"):g}).'
        )
    return ''


def _format(h: History) -> str:
    now, before = h.last('format'), h.first('format')
    if now < h.limit('format') * before:
        return (
            f'The format collapses: {now:.0%} of the trajectories are well-formed, {before:.0%} in the '
            f'first steps (alarms.format {h.limit("format"):g}).'
        )
    return ''


def _entropy(h: History) -> str:
    if math.isnan(h.last('reward')):
        return ''  # of demonstrations it falls as they are learned
    return _moved(h, 'entropy', 'entropy', 'The entropy', 'nats per token')


def _length(h: History) -> str:
    return _moved(h, 'length', 'response_length', 'The length of a response', 'tokens')


def _moved(h: History, name: str, metric: str, noun: str, unit: str) -> str:
    """The sentence of a metric that left the range from `name`_low to `name`_high times its first
    value.
    """
    now, before = h.last(metric), h.first(metric)
    low, high = f'{name}_low', f'{name}_high'
    if now < h.limit(low) * before:
        beyond = low
    elif now > h.limit(high) * before:
        beyond = high
    else:
        return ''
    return (
        f'{noun} is {now:.3g} {unit}, and was {before:.3g} in the first steps (alarms.{beyond} '
        f'{h.limit(beyond):g}).'
    )


def _reward(h: History) -> str:
    count = h.limits.get('reference')
    gain = h.last('reward', count) - h.first('reward', count)
    right = h.last('accuracy', count) - h.first('accuracy', count)
    if gain >= h.limit('reward_gain') and right <= 0:
        return (
            f'The reward rose by {gain:.2f} since the first steps (alarms.reward_gain '
            f'{h.limit("reward_gain"):g}), and the accuracy by {right:.2f}: look at what is rewarded.'
        )
    return ''


def _non_finite(h: History) -> str:
    window = h.steps[-int(h.limits['window']) :]
    skipped = sum(step.get('skipped_updates', 0) for step in window)
    if skipped >= h.limit('non_finite'):
        return (
            f'{skipped:.0f} updates of the last {len(window)} steps had a gradient that is not finite, '
            f'and were not made (alarms.non_finite {h.limit("non_finite"):g}).'
        )
    return ''


def _slow_host(h: History) -> str:
    count = int(h.limits['window'])
    ratios = [step.get('slowest_host', math.nan) for step in h.steps[-count:]]
    if len(ratios) == count and all(ratio > h.limit('slow_host') for ratio in ratios):
        return (
            f'Process {h.steps[-1]["slowest_process"]:.0f} takes {min(ratios):.1f} times as long as the '
            f'others (alarms.slow_host {h.limit("slow_host"):g}); look at its host and its tools.'
        )
    return ''


RULES: dict[str, Callable[[History], str]] = {
    'tools_down': _reaches(
        'tools_down',
        'infra_failed',
        'The tools failed on {value:.0%} of the trajectories ({limit}); look at the tool server and its log.',
        steps=1,
    ),
    'judge_down': _reaches(
        'judge_down',
        'unscorable',
        'The judge failed on {value:.0%} of the trajectories ({limit}); look at the service that judges.',
        steps=1,
    ),
    'tool_use': _tool_use,
    'same_answer': _reaches(
        'same_answer',
        'same_answer',
        '{value:.0%} of the answers to different questions are the same ({limit}).',
    ),
    'format': _format,
    'entropy': _entropy,
    'repetition': _reaches(
        'repetition', 'repetition', '{value:.0%} of the trajectories repeat a call ({limit}).'
    ),
    'length': _length,
    'sampler_gap': _reaches(
        'sampler_gap',
        'sampler_gap',
        'Sampler and trainer differ by {value:.3g} nats per token ({limit}): what is learned is not what was sampled.',
    ),
    'reward': _reward,
    'non_finite': _non_finite,
    'slow_host': _slow_host,
}
"""Rules by the names of their alarms, each a sentence or ''."""

# Metrics that the rules read, which are kept of every step.
METRICS = (
    'infra_failed', 'unscorable', TOOL_CALLS, 'same_answer', 'format', 'entropy', 'repetition', 'response_length',
    'sampler_gap', 'reward', 'accuracy', 'skipped_updates', 'slowest_host', 'slowest_process',
)  # fmt: skip
