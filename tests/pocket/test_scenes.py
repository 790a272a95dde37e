"""Scenes: sizes and distances as promised, and small views that look like the full picture shrunk."""

import json

import numpy as np
import pytest
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

FILES = PocketFiles()
RENDERER = Renderer(FILES)
ENTITIES = {'map': FILES.select('flag', 'train'), 'wall': FILES.select('painting', 'train')}
CASES = [(kind, level) for kind in ENTITIES for level in SIZES]


def scenes(kind, level, number, seed=0):
    rng = np.random.default_rng([seed, level])
    low, high = COUNTS[level]
    return [
        sample_scene(rng, ENTITIES[kind], kind, int(rng.integers(low, high + 1)), SIZES[level])
        for _ in range(number)
    ]


@pytest.mark.parametrize('kind,level', CASES)
def test_objects_are_small_apart_and_inside(kind, level):
    for spec in scenes(kind, level, 60):
        assert spec.size[0] >= 3840 and spec.size[1] >= 2160
        assert len({placement.entity for placement in spec.placements}) == len(spec.placements)
        boxes = [outer_box(kind, placement.box) for placement in spec.placements]
        for placement, box in zip(spec.placements, boxes, strict=True):
            assert spec.area(placement) < 0.05
            width, height = placement.box[2] - placement.box[0], placement.box[3] - placement.box[1]
            assert max(width, height) <= SIZES[level][1]
            assert level == 1 or max(width, height) >= SIZES[level][0] - 1
            assert width / height == pytest.approx(
                FILES.entities[placement.entity].aspect, rel=0.03
            )
            assert box[0] >= 0 and box[1] >= 0 and box[2] <= spec.size[0] and box[3] <= spec.size[1]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
                assert gap >= 20


def test_same_seed_same_scene_and_json_round_trip():
    for kind, level in CASES:
        first, again, other = (
            scenes(kind, level, 3),
            scenes(kind, level, 3),
            scenes(kind, level, 3, seed=1),
        )
        assert first == again and first != other
        assert [
            SceneSpec.from_json(json.loads(json.dumps(spec.to_json()))) for spec in first
        ] == first


@pytest.mark.parametrize('kind', ENTITIES)
def test_a_view_looks_like_the_full_picture_shrunk(kind):
    spec = scenes(kind, 3, 1)[0]
    full = RENDERER.render(spec)
    assert full.size == (3840, 2160)
    for box in (None, (0.2, 0.3, 0.5, 0.6), (0.05, 0.1, 0.95, 0.9)):
        view = np.asarray(RENDERER.render(spec, box, (448, 252)), float)
        pixels = [
            part * side for part, side in zip(box or (0, 0, 1, 1), full.size * 2, strict=True)
        ]
        shrunk = full.resize((448, 252), Image.Resampling.BOX, box=pixels)
        assert np.abs(view - np.asarray(shrunk, float)).mean() < 2.5


def test_the_placed_picture_is_where_its_box_says():
    spec = scenes('map', 1, 1)[0]
    placement = spec.placements[0]
    shown = RENDERER.render(spec, spec.fractions(placement), (180, 135))
    with Image.open(FILES.folder / FILES.entities[placement.entity].file) as image:
        wanted = image.convert('RGB').resize((180, 135), Image.Resampling.BOX)
    assert np.abs(np.asarray(shown, float) - np.asarray(wanted, float)).mean() < 6


def test_native_pixels_by_default():
    spec = scenes('wall', 2, 1)[0]
    assert RENDERER.render(spec, (0.25, 0.25, 0.5, 0.75)).size == (960, 1080)


def test_a_picture_alone_fills_the_image():
    image = RENDERER.alone('flag-fr', np.random.default_rng(0))
    left, right = (
        image.getpixel((10, image.height // 2)),
        image.getpixel((image.width - 10, image.height // 2)),
    )
    assert max(image.size) == 336 and left[2] > 2 * left[0] and right[0] > 2 * right[2]


@pytest.mark.parametrize(
    'arguments,sentence',
    [
        ((ENTITIES['map'], 'sea', 1, (90, 220)), "neither 'map' nor 'wall'"),
        ((ENTITIES['wall'], 'map', 1, (90, 220)), 'shows flags only'),
        ((ENTITIES['map'][:2], 'map', 3, (90, 220)), 'only 2 entities'),
        ((ENTITIES['map'], 'map', 40, (900, 950)), 'do not fit'),
    ],
)
def test_impossible_scenes_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample_scene(np.random.default_rng(0), *arguments)


@pytest.mark.parametrize('box', [(0.5, 0, 0.5, 1), (0, 0, 1.2, 1), (0, float('nan'), 1, 1)])
def test_impossible_views_are_refused(box):
    with pytest.raises(ValueError, match='no rectangle'):
        RENDERER.render(scenes('map', 1, 1)[0], box, (100, 100))
