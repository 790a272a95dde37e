"""Image searches that come with released data, in the layout of SenseNova-MARS.

Source of the layout: https://github.com/OpenSenseNova/SenseNova-MARS (MIT), its manifests and its image-search tool. A
manifest is JSON of {name: {root, annotation, …}}; an annotation is JSONL of {image, image_search_title_list,
image_search_thumbnail_list, …}, its paths relative to the root, and the manifest's relative to its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools_server.backends.image_prefetched import Result
from tools_server.config import ConfigError
from tools_server.failures import ToolError
from tools_server.pictures.convert import read_image

TITLES, THUMBNAILS = 'image_search_title_list', 'image_search_thumbnail_list'


def read_searches(
    source: Path, left_out: Callable[[str], None]
) -> Iterator[tuple[bytes, list[Result]]]:
    """Pictures and the results that were fetched for them.

    Args:
        source: a manifest (.json), or an annotation (.jsonl) beside its pictures.
        left_out: told of each picture or thumbnail that cannot be read, in a sentence.

    Raises:
        ConfigError: the file is neither.
    """
    for annotation, root in _annotations(source):
        for number, row in enumerate(_rows(annotation), start=1):
            titles, files = row.get(TITLES) or [], row.get(THUMBNAILS) or []
            image = row.get('image')
            image = image[0] if isinstance(image, list) and image else image
            if not titles or not isinstance(image, str):
                continue
            place = f'{annotation}:{number}'
            picture = _readable(root / image, place, left_out)
            if picture is not None:
                shown = [(t, _readable(root / f, place, left_out)) for t, f in zip(titles, files)]
                yield picture, [Result(str(t or ''), data) for t, data in shown if data is not None]


def _readable(path: Path, place: str, left_out: Callable[[str], None]) -> bytes | None:
    """A picture's file, if it can be decoded."""
    try:
        data = path.read_bytes()
        read_image(data, max_pixels=None)
    except (OSError, ToolError) as error:
        left_out(f'{place}: {path} ({getattr(error, "strerror", None) or error})')
        return None
    return data


def _annotations(source: Path) -> list[tuple[Path, Path]]:
    """Annotation files, each with the folder that its paths start from."""
    if source.suffix == '.jsonl':
        return [(source, source.parent)]
    try:
        parts = json.loads(source.read_text(encoding='utf-8'))
        found = [
            (source.parent / part['annotation'], source.parent / part['root'])
            for part in parts.values()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f'{source} is no manifest of {{name: {{root, annotation}}}}') from None
    if missing := next((file for file, _ in found if not file.is_file()), None):
        raise ConfigError(f'{source} names {missing}, which is not there')
    return found


def _rows(annotation: Path) -> Iterator[dict[str, Any]]:
    with annotation.open(encoding='utf-8') as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f'{annotation}: line {number} is not JSON') from None
            if not isinstance(row, dict):
                raise ConfigError(f'{annotation}: line {number} is no record')
            yield row
