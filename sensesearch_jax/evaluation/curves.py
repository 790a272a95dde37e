"""Learning curves for the report: which metrics are drawn together, smoothing, coordinates for
inline SVG.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# A curve is drawn from at most so many points; more are averaged in equal blocks of steps.
MAX_POINTS = 300


@dataclasses.dataclass(frozen=True)
class Chart:
    """One small chart: metrics drawn in one pair of axes."""

    title: str
    metrics: Mapping[str, str]  # metric name to label
    unit: str = ''
    share: bool = False  # values are fractions, shown in per cent
    target: float | None = None  # a value worth a line of its own
    smoothed: bool = True  # False for what is no noisy measurement


def _single(title: str, metric: str, **options: Any) -> Chart:
    return Chart(title, {metric: ''}, **options)


_KINDS = {'search': 'search', 'perception': 'perception', 'search_only': 'search only'}
_TOOLS = {'image_crop': 'crop', 'image_search': 'image search', 'text_search': 'text search'}

_FAILURES = Chart(
    'Not counted or truncated',
    {
        'truncated': 'truncated',
        'infra_failed': 'infrastructure',
        'unscorable': 'unscorable',
        'too_long': 'too long',
    },
    share=True,
)

# Per stage, by the first word of its name, the charts in reading order. Metrics not named here are
# drawn after them, one chart each.
CHARTS: dict[str, tuple[Chart, ...]] = {
    'sft': (
        _single('Loss', 'loss', unit='nats per token'),
        _single('Gradient norm', 'grad_norm'),
        _single('Learning rate', 'learning_rate', smoothed=False),
        Chart('Validation accuracy', {'validation/accuracy': ''}, share=True, smoothed=False),
        _single('Norm of the update', 'update_norm'),
        _single('Throughput', 'tokens_per_second', unit='tokens/s'),
        _single('Model FLOPs utilization', 'mfu', share=True),
    ),
    'rl': (
        _single('Reward', 'reward'),
        Chart('Accuracy', {'accuracy': ''}, share=True),
        Chart('Validation accuracy', {'validation/accuracy': ''}, share=True, smoothed=False),
        Chart('Accuracy by category', {f'accuracy/{k}': v for k, v in _KINDS.items()}, share=True),
        _single('Format', 'format', share=True),
        _single('Evidence shown by tools', 'evidence', share=True),
        _single('Price of the tool calls', 'tool_cost'),
        Chart('Tool calls per trajectory', {f'tool_calls/{k}': v for k, v in _TOOLS.items()}),
        _single('Turns per trajectory', 'turns'),
        _single('Response length', 'response_length', unit='tokens'),
        _single('KL to the reference', 'kl', unit='nats per token'),
        _single('Entropy', 'entropy', unit='nats per token'),
        Chart('Importance ratio', {'ratio': 'mean', 'ratio_max': 'largest'}, target=1.0),
        Chart(
            'Tokens clipped',
            {'clip_ratio': 'all', 'clip_ratio/low': 'lower', 'clip_ratio/high': 'upper'},
            share=True,
        ),
        Chart(
            'Sampler against trainer',
            {'sampler_gap': 'mean', 'sampler_gap_max': 'largest'},
            unit='nats',
        ),
        _single('Groups of equal rewards', 'frac_reward_zero_std', share=True),
        Chart(
            'Groups sampled',
            {'spread_share': 'with spread', 'groups_without_use': 'not used'},
            share=True,
        ),
        _single('Gain of the batch layer', 'batch_gain', unit='×'),
        _FAILURES,
        _single('Repetition', 'repetition', share=True),
        _single('Equal answers to different questions', 'same_answer', share=True),
        _single('Policy loss', 'loss'),
        _single('Gradient norm', 'grad_norm'),
        _single('Norm of the update', 'update_norm'),
        _single('Learning rate', 'learning_rate', smoothed=False),
        _single('Token amplification', 'token_amplification', unit='×', target=1.0),
        _single('Vision amplification', 'vision_amplification', unit='×', target=1.0),
        _single('Time waiting for tools', 'tool_wait_share', share=True),
        _single('Time waiting for the judge', 'judge_wait_share', share=True),
        _single('Throughput', 'tokens_per_second', unit='tokens/s'),
        _single('Model FLOPs utilization', 'mfu', share=True),
        _single('Rollout throughput', 'rollouts_per_second', unit='trajectories/s'),
        _single('Seconds per step', 'step_s', unit='s'),
        Chart(
            'Host memory',
            {'memory_mib': 'resident', 'memory_peak_mib': 'peak'},
            unit='MiB',
            smoothed=False,
        ),
        _single('Compilations', 'compilations', smoothed=False),
    ),
    'evaluate': (
        _single('Accuracy', 'accuracy', share=True),
        _single('Format', 'format', share=True),
        Chart('Tool calls per trajectory', {f'tool_calls/{k}': v for k, v in _TOOLS.items()}),
        _single('Turns per trajectory', 'turns'),
        _FAILURES,
    ),
}


def curve_sections(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The learning curves of every stage in the order the stages began.

    Args:
      metrics: records as `runtime.metrics.read_metrics` gives them: 'step', 'stage', 'time' and
        'values' (numbers by metric name). What is no finite number is left out; a step that occurs
        twice counts as it was logged last.

    Returns:
      Per stage {'stage', 'charts', 'others'}; `others` are the charts of metrics that `CHARTS` does
      not name. A chart has 'title', 'unit', 'share', 'low', 'high' (axis), 'first', 'last' (steps),
      'target' (height of the line, if any) and 'curves'. A curve has 'label', 'colour' (its CSS
      class), 'last' (smoothed value), 'raw' and 'smooth' (points in a 100×100 box), 'band' (outline
      of a spread, '' without one) and 'data' (label, steps, raw and smoothed values, for reading
      off).
    """
    stages: dict[str, dict[str, dict[int, float]]] = {}
    for record in metrics:
        stage = stages.setdefault(record['stage'], {})
        for name, value in record['values'].items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                stage.setdefault(name, {})[record['step']] = float(value)
    sections = []
    for stage, series in stages.items():
        declared = CHARTS.get(stage.split()[0], ())
        named = {metric for chart in declared for metric in chart.metrics}
        rest = [_single(name, name) for name in sorted(series) if name not in named]
        charts, others = (
            [c for c in (_draw(chart, series) for chart in group) if c]
            for group in (declared, rest)
        )
        if charts or others:
            sections.append({'stage': stage, 'charts': charts, 'others': others})
    return sections


def smooth(values: Sequence[float], width: float) -> np.ndarray:
    """Weighted mean around each point, Gaussian weights: unlike a running average it does not lag
    behind.

    Args:
      values: [points], evenly spaced.
      width: standard deviation of the weights, in points; 0 changes nothing.

    Returns:
      [points] float64.
    """
    values = np.asarray(values, np.float64)
    if width <= 0:
        return values
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place[None, :]) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


def _draw(chart: Chart, series: Mapping[str, Mapping[int, float]]) -> dict[str, Any] | None:
    """Coordinates and labels of one chart; None if none of its metrics was logged."""
    present = {name: thinned(series[name]) for name in chart.metrics if series.get(name)}
    if not present:
        return None
    smoothed = {
        name: smooth(values, len(values) / 40 if chart.smoothed else 0)
        for name, (_, values) in present.items()
    }
    first = min(steps[0] for steps, _ in present.values())
    last = max(steps[-1] for steps, _ in present.values())
    everything = np.concatenate([values for _, values in present.values()])
    low, high = axis(everything, chart)
    return chart_frame(chart, (low, high), (first, last)) | {
        'curves': [
            {
                'label': chart.metrics[name],
                'colour': f'series{number}',
                'band': '',
                'last': float(smoothed[name][-1]),
                'raw': points(steps, values, first, last, low, high),
                'smooth': points(steps, smoothed[name], first, last, low, high),
                'data': {
                    'label': chart.metrics[name],
                    'steps': [round(float(s)) for s in steps],
                    'raw': [float(f'{v:.4g}') for v in values],
                    'smooth': [float(f'{v:.4g}') for v in smoothed[name]],
                },
            }
            for number, (name, (steps, values)) in enumerate(present.items())
        ]
    }


def chart_frame(
    chart: Chart, ends: tuple[float, float], steps: tuple[float, float]
) -> dict[str, Any]:
    """A chart's titles, axes and target, without its curves.

    Args:
        chart: title, unit and target.
        ends: lower and upper end of the value axis.
        steps: the first and the last.
    """
    target = None if chart.target is None else float(height(chart.target, *ends))
    return {
        'title': chart.title,
        'unit': chart.unit,
        'share': chart.share,
        'low': ends[0],
        'high': ends[1],
        'first': int(round(steps[0])),
        'last': int(round(steps[1])),
        'target': target,
    }


def thinned(points: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values in order, averaged in blocks if there are more than `MAX_POINTS`."""
    steps = np.array(sorted(points), dtype=float)
    values = np.array([points[int(step)] for step in steps])
    blocks = min(len(steps), MAX_POINTS)
    return tuple(np.array([b.mean() for b in np.array_split(a, blocks)]) for a in (steps, values))


def axis(values: np.ndarray, chart: Chart) -> tuple[float, float]:
    """Lower and upper end of the value axis: round numbers around the data and the target."""
    if chart.target is not None:
        values = np.append(values, chart.target)
    low, high = float(values.min()), float(values.max())
    if chart.share:  # a share near its bounds is read against them
        low, high = (0.0 if low < 0.35 else low), (1.0 if high > 0.65 else high)
    elif 0 <= low < 0.5 * high:
        low = 0.0
    if high - low < 1e-9 * max(abs(high), 1e-9):
        pad = abs(high) * 0.1 or 1.0
        low, high = (0.0 if low == 0 else low - pad), high + pad
    step = 10 ** math.floor(math.log10(high - low))
    step *= next(m for m in (0.1, 0.2, 0.25, 0.5, 1) if (high - low) / (step * m) <= 10)
    low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    return float(f'{low:.10g}'), float(f'{high:.10g}')


def height(value: Any, low: float, high: float) -> Any:
    """The place of values on an axis from `low` to `high`, in per cent from the top."""
    return 100 - 100 * (value - low) / (high - low)


def points(
    steps: np.ndarray, values: np.ndarray, first: float, last: float, low: float, high: float
) -> str:
    """The points of a polyline in a 100×100 box.

    Args:
        steps: [points], rising or falling.
        values: [points].
        first: step at the left edge.
        last: step at the right edge.
        low: value at the lower edge.
        high: value at the upper edge.
    """
    if first == last:
        across, values = np.array([0.0, 100.0]), np.repeat(values, 2)
    else:
        across = 100 * (steps - first) / (last - first)
        if len(across) == 1:  # a line of one point is invisible
            across, values = across[0] + np.array([-1.0, 1.0]), np.repeat(values, 2)
    return ' '.join(
        f'{x:.2f},{y:.2f}' for x, y in zip(across, height(values, low, high), strict=True)
    )
