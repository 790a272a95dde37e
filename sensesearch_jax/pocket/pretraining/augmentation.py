"""Augmentation of the pictures of entities: cropped, mirrored and recoloured at random.

There are some two hundred training flags and paintings, and a policy that meets them a hundred
times each soon says a flag's colour because it knows the flag. Of a flag that it has never met it
then says nothing right. What it is to see, not to remember, must come apart from who it is seen in.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import cv2
import numpy as np

from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.world.files import Entity, PocketFiles
from sensesearch_jax.pocket.world.scenes import Renderer, pyramid

KEPT = 256  # variants whose pictures stay in memory
POOL = 160  # invented pictures of each kind that come back
FRESH = 0.15  # share of times that one gives way to a new one
TRIES = 8
LIKE = 20  # mean difference of two small pictures, in 255ths, below which they show the same
ASPECTS = (0.55, 1.8)  # of an augmented painting, width by height


class AugmentedRenderer(Renderer):
    """Draws entities of the data folder, variants of them, which have ids of their own, and invented
    ones.

    Three stripes in other colours can be another country's flag: no variant looks like a flag that
    is held out.

    Args:
        files: the data folder.
        world: of the invented ones; None for none.
    """

    def __init__(self, files: PocketFiles, world: InventedWorld | None):
        super().__init__(files)
        self.world = world
        self._pool: dict[str, list[tuple[Entity, list[np.ndarray]]]] = {'flag': [], 'painting': []}
        self._variants: OrderedDict[str, tuple[Entity, list[np.ndarray]]] = OrderedDict()
        self._count = 0
        self._held = np.stack(
            [
                small(self.picture(entity.id)[0])
                for entity in files.entities.values()
                if entity.kind == 'flag' and entity.split != 'train'
            ]
        )

    def entity(self, name: str) -> Entity:
        """The entity or variant of that id; a variant is forgotten some hundred others later."""
        return self._variants[name][0] if name in self._variants else self.files.entities[name]

    def picture(self, entity: str) -> list[np.ndarray]:
        """The picture [height, width, 3] of an entity or a variant, and its halvings."""
        return self._variants[entity][1] if entity in self._variants else super().picture(entity)

    def some(
        self, rng: np.random.Generator, entities: Sequence[Entity], count: int, share: float
    ) -> list[Entity]:
        """`count` of the entities, or all if there are fewer, a `share` of them augmented.

        Args:
            rng: the only source of randomness.
            entities: to choose from.
            count: at most.
            share: probability that one is augmented.
        """
        chosen = rng.choice(len(entities), min(count, len(entities)), replace=False)
        some = [entities[i] for i in chosen]
        return [self._other(rng, entity) if rng.random() < share else entity for entity in some]

    def _other(self, rng: np.random.Generator, entity: Entity) -> Entity:
        """A variant, or as often as not an invented entity in its place."""
        if self.world is None or rng.random() < 0.5:
            return self.augment(rng, entity)
        pool = self._pool[entity.kind]
        place = int(rng.integers(POOL))
        if place < len(pool) and rng.random() > FRESH:
            found, levels = pool[place]
        else:
            pixels = self.world.picture(rng, entity.kind)
            self._count += 1
            found = dataclasses.replace(
                entity, id=f'{entity.kind}~{self._count}', size=(pixels.shape[1], pixels.shape[0])
            )
            levels = pyramid(pixels)
            pool[place : place + 1] = [(found, levels)]
        self.keep(found, levels)
        return found

    def keep(self, entity: Entity, levels: list[np.ndarray]) -> None:
        """Remembers a picture until some hundred others have come.

        Args:
            entity: what it shows.
            levels: the picture and its halvings; see `picture`.
        """
        self._variants[entity.id] = entity, levels
        self._variants.move_to_end(entity.id)
        while len(self._variants) > KEPT:
            self._variants.popitem(last=False)

    def augment(self, rng: np.random.Generator, entity: Entity) -> Entity:
        """A new variant: the entity with a picture of another cut and, a flag, of other colours.

        The entity itself where chance finds none that looks like nothing held out.
        """
        original = super().picture(entity.id)[0]
        for _ in range(TRIES):
            pixels = recoloured(
                rng, mirrored(rng, cut_out(rng, original, entity.kind)), entity.kind
            )
            if entity.kind != 'flag' or not self.like_held_out(pixels):
                break
        else:
            return entity
        self._count += 1
        variant = dataclasses.replace(
            entity, id=f'{entity.id}~{self._count}', size=(pixels.shape[1], pixels.shape[0])
        )
        self.keep(variant, pyramid(pixels))
        return variant

    def like_held_out(self, pixels: np.ndarray) -> bool:
        """Whether a picture looks like a flag outside the split 'train'."""
        return bool(np.abs(self._held - small(pixels)).mean((1, 2, 3)).min() < LIKE)


def small(pixels: np.ndarray) -> np.ndarray:
    """A picture at 16 × 12 pixels, to compare."""
    return cv2.resize(pixels, (16, 12), interpolation=cv2.INTER_AREA).astype(np.float32)


def cut_out(rng: np.random.Generator, pixels: np.ndarray, kind: str) -> np.ndarray:
    """A part of the picture: of a flag one of its own shape, of a painting one of any shape.

    Args:
        rng: the only source of randomness.
        pixels: [height, width, 3].
        kind: 'flag' or 'painting'.
    """
    height, width = pixels.shape[:2]
    if kind == 'flag':
        share = rng.uniform(0.6, 1.0)
        w, h = round(share * width), round(share * height)
    else:
        aspect = float(np.exp(rng.uniform(*np.log(ASPECTS))))
        w = min(width, round(height * aspect))
        h = min(height, round(w / aspect))
    left, top = (int(rng.integers(0, room + 1)) for room in (width - w, height - h))
    return pixels[top : top + h, left : left + w]


def mirrored(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Turned over left to right, or top to bottom, each as often as not."""
    return np.ascontiguousarray(
        pixels[:: 1 - 2 * int(rng.integers(2)), :: 1 - 2 * int(rng.integers(2))]
    )


def recoloured(rng: np.random.Generator, pixels: np.ndarray, kind: str) -> np.ndarray:
    """A flag with its channels exchanged, at times its hues turned too; a painting somewhat lighter
    or darker.

    Args:
        rng: the only source of randomness.
        pixels: [height, width, 3].
        kind: 'flag' or 'painting'.
    """
    if kind != 'flag':
        return np.clip(pixels * rng.uniform(0.75, 1.15), 0, 255).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels[..., rng.permutation(3)])
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)  # hue in half degrees
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(180))) % 180
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels
