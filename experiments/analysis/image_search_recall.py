"""How often image search finds an object, by how it was cropped: the table behind
configs/tools_pocket.yaml.

    python -m experiments.analysis.image_search_recall                        # 1 minute on one core
    python -m experiments.analysis.image_search_recall --scenes=40 --seed=1   # more scenes

Scenes of the pocket world at every level of difficulty are searched whole and in crops at native
resolution: cut to the object, cut loosely (the crop's sides so many times the object's, the object
anywhere in its middle), and cut along a grid of tenths, once and twice, as a coarse agent does.
'top 1' counts a search whose first title is the object's; 'top 5' one with the title among five.
'empty' rows search parts of scenes without any object: there the share of searches that (rightly)
find nothing is shown under 'top 1'.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.scenes import (
    COUNTS,
    SIZES,
    Renderer,
    SceneSpec,
    outer_box,
    sample_scene,
)
from tools_server.backends.image_local import LocalImageSearch
from tools_server.config import ImageStoreConfig, load_config
from tools_server.images import ImageStore

CONFIG = Path(__file__).parents[2] / 'configs' / 'tools_pocket.yaml'
OPTIONS = 'upload_side', 'min_region', 'min_share', 'min_similarity'  # of the config's image_search
LOOSE = (1.15, 1.5, 2.0, 3.0, 4.0)


def around(box: np.ndarray, times: float, rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """A view `times` as wide and high as the box [4] in pixels, which lies anywhere in the middle
    70 % of the slack.
    """
    extent = (box[2:] - box[:2]) * times
    slack = extent - (box[2:] - box[:2])
    low = box[:2] - slack * (0.5 + rng.uniform(-0.35, 0.35, 2))
    low = np.clip(low, 0, np.maximum(size - extent, 0))
    return np.concatenate([low, np.minimum(low + extent, size)])


def tenths(box: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The smallest box on a grid of tenths of `view` that contains `box` (both in pixels) with a
    little margin.
    """
    origin, cell = view[:2], (view[2:] - view[:2]) / 10
    low = np.clip(np.floor((box[:2] - origin) / cell - 0.1), 0, 9)
    high = np.clip(np.ceil((box[2:] - origin) / cell + 0.1), low + 1, 10)
    return np.concatenate([origin + low * cell, origin + high * cell])


def views(
    spec: SceneSpec, box: tuple[int, int, int, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Crops of a scene to search for one object: name to [left, top, right, bottom] in pixels."""
    size = np.array(spec.size, float)
    inner = np.array(box, float)
    outer = np.array(outer_box(spec.kind, box), float)
    whole = np.array([0, 0, *size])
    first = tenths(outer, whole)
    result = {'whole': whole, 'tight': outer}
    result |= {f'loose ×{times:g}': around(outer, times, rng, size) for times in LOOSE}
    result |= {'tenths': first, 'tenths twice': tenths(outer, first), 'without its frame': inner}
    return result


def pixels_of(renderer: Renderer, spec: SceneSpec, view: np.ndarray) -> np.ndarray:
    """The view at native resolution after JPEG, as it comes out of a scene file."""
    width, height = spec.size
    view = np.rint(view)
    image = renderer.render(spec, tuple(view / (width, height, width, height)))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=92)
    return np.asarray(Image.open(buffer).convert('RGB'))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--config', default=CONFIG, type=Path, help='of the tool server')
    parser.add_argument('--scenes', default=16, type=int, help='per kind and level')
    parser.add_argument('--seed', default=0, type=int)
    for name in OPTIONS:
        parser.add_argument(f'--{name}', type=float, help="instead of the config's")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    section = load_config(arguments.config).image_search
    changes = {name: getattr(arguments, name) for name in OPTIONS}
    changes = {name: value for name, value in changes.items() if value is not None}
    section = section.model_copy(update=changes)
    search = LocalImageSearch(section, ImageStore(ImageStoreConfig()))
    files = PocketFiles()
    renderer = Renderer(files)
    rng = np.random.default_rng(arguments.seed)
    entities = {
        kind: [e for e in files.entities.values() if e.kind == kind]
        for kind in ('flag', 'painting')
    }
    found: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    milliseconds: dict[str, list[float]] = {}

    def look(
        view_name: str, row: str, spec: SceneSpec, view: np.ndarray, title: str | None
    ) -> None:
        pixels = pixels_of(renderer, spec, view)
        start = time.perf_counter()
        titles = [match.title for match in search.search_pixels(pixels, 5)]
        milliseconds.setdefault('whole' if view_name == 'whole' else 'crop', []).append(
            1e3 * (time.perf_counter() - start)
        )
        right = (
            (not titles, not titles) if title is None else (titles[:1] == [title], title in titles)
        )
        found.setdefault((row, view_name), []).append(right)

    for kind, entity_kind in (('map', 'flag'), ('wall', 'painting')):
        for level, sizes in SIZES.items():
            for _ in range(arguments.scenes):
                count = int(rng.integers(COUNTS[level][0], COUNTS[level][1] + 1))
                spec = sample_scene(rng, entities[entity_kind], kind, count, sizes)
                for placement in spec.placements[:2]:
                    title = files.entities[placement.entity].title
                    for name, view in views(spec, placement.box, rng).items():
                        look(name, f'{kind} {level}', spec, view, title)
        for _ in range(arguments.scenes):
            spec = sample_scene(rng, entities[entity_kind], kind, 1, SIZES[3])
            spec = dataclasses.replace(spec, placements=())
            width = rng.uniform(200, 1600)
            low = rng.uniform(0, 1, 2) * (np.array(spec.size) - (width, width * 9 / 16))
            view = np.concatenate([low, low + (width, width * 9 / 16)])
            look('empty', f'{kind} –', spec, view, None)
            look('whole', f'{kind} –', spec, np.array([0, 0, *spec.size]), None)

    print(
        f'{len(search)} pictures, '
        + ', '.join(f'{name}={getattr(section, name):g}' for name in OPTIONS)
    )
    print(f'{"scene":8}{"query":20}{"searches":>9}{"top 1":>8}{"top 5":>8}')
    for (row, name), rights in found.items():
        first, fifth = np.mean(rights, axis=0)
        print(f'{row:8}{name:20}{len(rights):9}{first:8.2f}{fifth:8.2f}')
    for name, values in milliseconds.items():
        p50, p95 = np.quantile(values, (0.5, 0.95))
        print(f'{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms per search, on one core')


if __name__ == '__main__':
    main()
