"""A picture of simulated runs: what each host does when, from the beginning of a step on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sensesearch_jax.simulation.run import KINDS, Simulated

COLOURS = dict(
    zip(
        KINDS,
        (
            '#2f6fb5', '#79b4e3', '#1f4e79', '#8f6fc1', '#2e8b57', '#e0a030', '#c8553d', '#d9d9d9',
            '#9aa0a6', '#5f6368', '#e377c2',
        ),
    )
)  # fmt: skip
WIDTH, ROW, LEFT, TOP, SCALE = 1200, 9, 70, 58, 2  # points, and pixels of a point


def draw_timeline(runs: Mapping[str, Simulated], seconds: float, path: Path) -> None:
    """Draws the hosts of each run as rows, and what its first engine does as colours along them.

    Args:
        runs: by the title that each is given.
        seconds: of the picture's width, from the beginning of the second step.
        path: of the PNG that is written.
    """
    hosts = [len(run.segments) for run in runs.values()]
    height = TOP + sum(ROW * count + 74 for count in hosts)
    image = Image.new('RGB', (WIDTH * SCALE, height * SCALE), 'white')
    draw = ImageDraw.Draw(image)
    _legend(draw, [kind for kind in KINDS if any(run.shares()[kind] > 0 for run in runs.values())])
    per_second, top = (WIDTH - LEFT - 20) / seconds, TOP
    for title, run in runs.items():
        start = run.window[0]
        _write(draw, LEFT, top, f'{title}: {run.step_s:.0f} s a step', 15)
        top += 24
        for host, engines in enumerate(run.segments):
            if not host % 4:
                _write(draw, 8, top + ROW * host - 2, f'host {host}', 11)
            for kind, began, ended in engines[0]:
                x = [LEFT + per_second * min(max(t - start, 0), seconds) for t in (began, ended)]
                if x[1] > x[0]:
                    y = top + ROW * host
                    _box(draw, x[0], y, x[1], y + ROW - 2, COLOURS[kind])
        top += ROW * len(run.segments)
        for moment in _ticks(seconds):
            x = LEFT + per_second * moment
            draw.line([v * SCALE for v in (x, top, x, top + 4)], '#444444', SCALE)
            _write(draw, x - 8, top + 6, f'{moment:g}', 11)
        for step in run.steps:
            if 0 < step.ended - start < seconds:
                x, first = LEFT + per_second * (step.ended - start), top - ROW * len(run.segments)
                draw.line([v * SCALE for v in (x, first - 3, x, top)], 'black', SCALE)
        top += 50
    _write(draw, LEFT, height - 18, 'seconds; a black line is the end of a step', 11)
    image.save(path)


def _legend(draw: ImageDraw.ImageDraw, kinds: Sequence[str]) -> None:
    x = LEFT
    for kind in kinds:
        _box(draw, x, 20, x + 12, 32, COLOURS[kind])
        _write(draw, x + 17, 19, kind, 12)
        x += 30 + 7 * len(kind)


def _ticks(seconds: float) -> list[float]:
    """Round moments, about ten."""
    step = next(
        s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e9) if s * 10 >= seconds
    )
    return [step * i for i in range(int(seconds / step) + 1)]


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int) -> None:
    font = ImageFont.load_default(size * SCALE)
    draw.text((x * SCALE, y * SCALE), text, '#222222', font)


def _box(
    draw: ImageDraw.ImageDraw, x0: float, y0: float, x1: float, y1: float, colour: str
) -> None:
    draw.rectangle([x0 * SCALE, y0 * SCALE, max(x1 * SCALE - 1, x0 * SCALE), y1 * SCALE], colour)
