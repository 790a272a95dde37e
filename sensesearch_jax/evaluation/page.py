"""Pages of one HTML file each: style, scripts and pictures are inline, and nothing is loaded.

A content security policy in a page's head allows its own scripts only, so that text from tools
stays text whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sensesearch_jax import evaluation
from sensesearch_jax.evaluation.trajectory_viewer import script_json


def write_page(
    path: str | Path,
    template: str,
    values: Mapping[str, Any],
    viewer: Mapping[str, Any],
    *,
    scripts: Sequence[str],
    filters: Mapping[str, Callable[..., str]],
) -> int:
    """Writes a page with trajectories and returns its size in bytes.

    Args:
        path: of the HTML file; its folder must exist.
        template: file of this package.
        values: for the template, beside those of the viewer and of `render_page`.
        viewer: the data of the trajectories, see `trajectory_viewer.viewer_data`.
        scripts: files of this package, run in this order.
        filters: of the template, by name.
    """
    shown = {
        'shown': len(viewer['questions']),
        'total': viewer['total'],
        'viewer': Markup(script_json(viewer)),
    }
    page = render_page(template, {**values, **shown}, scripts=scripts, filters=filters)
    Path(path).write_bytes(page)
    return len(page)


def render_page(
    template: str,
    values: Mapping[str, Any],
    *,
    scripts: Sequence[str],
    filters: Mapping[str, Callable[..., str]],
) -> bytes:
    """A page, as its file holds it.

    Args:
        template: file of this package.
        values: for the template, beside 'style', 'scripts' and 'script_hashes'.
        scripts: files of this package, run in this order.
        filters: of the template, by name.
    """
    texts = [read_file(script) for script in scripts]
    hashes = (hashlib.sha256(text.encode()).digest() for text in texts)
    own = {
        'style': Markup(read_file('page.css')),
        'scripts': [Markup(text) for text in texts],
        'script_hashes': [base64.b64encode(digest).decode() for digest in hashes],
    }
    page = templates(filters).get_template(template).render(**values, **own)
    return page.encode(errors='replace')  # half a surrogate pair is no text


def templates(filters: Mapping[str, Callable[..., str]]) -> jinja2.Environment:
    """The templates of this package, with filters by name."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(read_file),
    )
    environment.filters |= dict(filters)
    return environment


def duration(seconds: float) -> str:
    """A time as a text: '40 s', '12 min', '3 h 05 min'."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 100 else f'{minutes // 60} h {minutes % 60:02d} min'


def bars(values: Mapping[str, float], text: Callable[[float], str]) -> list[dict[str, Any]]:
    """Counts or times as bars relative to the largest.

    Args:
        values: by name.
        text: of a value, as it stands at its bar.
    """
    most = max(values.values(), default=0) or 1
    return [
        {'label': name.replace('_', ' '), 'text': text(value), 'x': 100 * value / most}
        for name, value in values.items()
    ]


def flat_fields(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Dotted names and values, as texts, of a config's fields.

    Args:
        config: nested.
        prefix: of the names.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat_fields(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', str(value)


def read_file(name: str) -> str:
    """A file of the pages; read as text, so that the hash of a script is that of what a browser
    sees.
    """
    return resources.files(evaluation).joinpath(name).read_text('utf-8')
