"""Variants: other pictures of the same entities, and no flag among them that is held out."""

import numpy as np
import pytest

from sensesearch_jax.pocket.pretraining.augmentation import ASPECTS, KEPT, AugmentedRenderer
from sensesearch_jax.pocket.world.colours import dominant_colour
from sensesearch_jax.pocket.world.files import PocketFiles

FILES = PocketFiles()
TAUGHT = {kind: FILES.select(kind, 'train') for kind in ('flag', 'painting')}


@pytest.fixture(scope='module')
def renderer():
    return AugmentedRenderer(FILES, None)


def test_a_flag_comes_in_many_colours(renderer):
    """And with the shape that scenes are laid out for."""
    rng = np.random.default_rng(0)
    colours: dict[str, set] = {}
    for entity in TAUGHT['flag'][:40]:
        for _ in range(8):
            variant = renderer.augment(rng, entity)
            pixels = renderer.picture(variant.id)[0]
            assert (
                pixels.shape[1::-1] == variant.size
                and abs(variant.aspect / entity.aspect - 1) < 0.03
            )
            colours.setdefault(entity.id, set()).add(dominant_colour(pixels))
    assert np.mean([len(found - {None}) for found in colours.values()]) > 1.5


def test_a_painting_comes_in_many_shapes(renderer):
    rng = np.random.default_rng(0)
    for entity in TAUGHT['painting'][:6]:
        aspects = [renderer.augment(rng, entity).aspect for _ in range(20)]
        assert min(aspects) < 0.8 and max(aspects) > 1.25
        assert ASPECTS[0] * 0.95 < min(aspects) and max(aspects) < ASPECTS[1] * 1.05


def test_no_variant_looks_like_a_flag_that_is_held_out(renderer):
    rng = np.random.default_rng(1)
    held = FILES.select('flag', 'test')
    assert all(renderer.like_held_out(renderer.picture(entity.id)[0]) for entity in held)
    for entity in TAUGHT['flag']:
        variant = renderer.augment(rng, entity)
        assert variant is entity or not renderer.like_held_out(renderer.picture(variant.id)[0])


def test_entities_keep_what_is_known_of_them(renderer):
    rng = np.random.default_rng(2)
    entity = TAUGHT['flag'][0]
    variant = renderer.augment(rng, entity)
    assert variant.id != entity.id and (variant.title, variant.facts, variant.split) == (
        entity.title,
        entity.facts,
        'train',
    )
    assert renderer.entity(variant.id) is variant and renderer.entity(entity.id) is entity


def test_variants_are_forgotten(renderer):
    rng = np.random.default_rng(3)
    first = renderer.augment(rng, TAUGHT['flag'][0])
    for _ in range(KEPT):
        renderer.augment(rng, TAUGHT['flag'][1])
    with pytest.raises(KeyError):
        renderer.entity(first.id)


def test_the_same_draws_give_the_same_pictures():
    pictures = []
    for _ in range(2):
        renderer, rng = AugmentedRenderer(FILES, None), np.random.default_rng(4)
        pictures.append(
            [renderer.picture(e.id)[0] for e in renderer.some(rng, TAUGHT['flag'], 6, share=0.7)]
        )
    assert all(map(np.array_equal, *pictures))
