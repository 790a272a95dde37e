"""The invented world: entity number n of a split, the same whenever it is asked for."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.invented.flags import draw_flag
from sensesearch_jax.pocket.invented.letters import letter_models
from sensesearch_jax.pocket.invented.looks import Looks
from sensesearch_jax.pocket.invented.names import COUNTRIES, PEOPLE, Names
from sensesearch_jax.pocket.invented.paintings import draw_painting
from sensesearch_jax.pocket.invented.records import Records
from sensesearch_jax.pocket.world.files import Entity, PocketFiles
from sensesearch_jax.pocket.world.held_out import HeldOut
from sensesearch_jax.pocket.world.scenes import Renderer

SPLITS = ('train', 'validation')  # invented; the real test entities test
TERRITORIES = 0.15  # share of flags


class Invented(NamedTuple):
    """An entity with its picture and the passages about it."""

    entity: Entity
    pixels: UInt8[np.ndarray, 'height width 3']
    passages: list[dict[str, str]]


class InventedWorld:
    """Entities without end: flags from a grammar, paintings from parts of training ones, names from
    letter models, facts in the formats of the real ones.

    Nothing of a held-out entity goes in; no name shares a word with one, no picture looks like one
    (`looks.LIKE`). The splits share no invented word.

    Args:
        files: the data folder.
        split: 'train' or 'validation'.
        seed: other seeds give other entities.
    """

    def __init__(self, files: PocketFiles, split: str, seed: int):
        if split not in SPLITS:
            raise UserError(
                f'the invented world has the splits {" and ".join(SPLITS)}, not {split!r}; '
                'the test is of real entities alone'
            )
        held = HeldOut(files)
        self.split, self.seed = split, seed
        self.names = Names(letter_models(files, held), held, split == 'validation')
        self.records = Records(files, held, self.names)
        renderer = Renderer(files)
        self._held_out = Looks(renderer.picture(entity.id)[0] for entity in held.entities)
        self._paintings = [renderer.picture(e.id)[0] for e in files.select('painting', 'train')]

    def random(self, kind: str, number: int) -> np.random.Generator:
        """The generator of one entity's randomness."""
        return np.random.default_rng(
            [SPLITS.index(self.split), self.seed, zlib.crc32(kind.encode()), number]
        )

    def picture(self, rng: np.random.Generator, kind: str) -> UInt8[np.ndarray, 'height width 3']:
        """A picture that looks like none that is held out.

        Args:
            rng: the only source of randomness.
            kind: 'flag' or 'painting'.
        """
        while True:
            pixels = draw_flag(rng) if kind == 'flag' else draw_painting(rng, self._paintings)
            if not self._held_out.like(pixels):
                return pixels

    def title(self, rng: np.random.Generator, kind: str) -> tuple[str, str, str]:
        """Name, painter ('' for a flag) and language.

        Args:
            rng: the only source of randomness.
            kind: 'flag' or 'painting'.
        """
        language = self.names.language(rng)
        if kind == 'flag':
            return self.names.of(rng, COUNTRIES, language), '', language
        return self.names.painting(rng, language), self.names.of(rng, PEOPLE, language), language

    def entity(self, kind: str, number: int) -> Invented:
        """Entity `number` of a kind, 'flag' or 'painting'."""
        rng = self.random(kind, number)
        name, artist, language = self.title(rng, kind)
        identity = f'{kind}-{self.split}-{self.seed}-{number}'
        record = (
            self.records.painting(rng, identity, name, artist, language)
            if artist
            else self.records.flag(rng, identity, name, language)
        )
        pixels = self.picture(rng, kind)
        noun = 'painting' if artist else 'territory' if rng.random() < TERRITORIES else 'country'
        entity = Entity(
            id=identity,
            kind=kind,
            title=f'{name}, by {artist}' if artist else f'Flag of {name}',
            split=self.split,
            subject=f'{name} {artist}' if artist else name,
            noun=noun,
            file=f'gallery/{identity}.{"jpg" if artist else "png"}',
            size=(pixels.shape[1], pixels.shape[0]),
            facts=record.facts,
            passages=record.stated,
            aliases=record.aliases,
        )
        return Invented(entity, pixels, record.passages)
