"""Invented names of countries, places, people and paintings; none shares a word with a held-out one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sensesearch_jax.pocket.invented.letters import Letters
from sensesearch_jax.pocket.world.held_out import HeldOut, content_words

VALIDATION_PART = 8  # every eighth word is of the split 'validation' alone
LONGEST_TITLE = 44  # characters, as in the data folder

# {0} and {1} are words of one language.
COUNTRIES = ('{0}',) * 10 + (
    '{0} Islands', '{0} and {1}', 'Republic of {0}', 'North {0}', 'South {0}', 'New {0}', 'Saint {0}',
    'The {0}', '{0}-{1}', '{0} Island', 'Isle of {0}', '{0} {1}',
)  # fmt: skip
CAPITALS = ('{0}',) * 8 + ('Port {0}', '{0} City', 'San {0}', '{0}-{1}', 'Fort {0}', '{0} {1}')
PEAKS = (
    'Mount {0}', '{0}', '{0} {1}', 'Pico {0}', '{0} Peak', 'Mont {0}', 'Cerro {0}', 'Gunung {0}',
)  # fmt: skip
ANTHEMS = (
    'O {0}, Our Homeland', '{0} {1}', 'Hymn of {0}', 'Arise, {0}', '{0}, Land of {1}', 'God Save {0}',
    '{0} wa {1}', 'March of {0}', 'Our {0}', 'La {0}', 'Hail, {0} and {1}',
)  # fmt: skip
ADJECTIVES = ('{0}ish', '{0}ian', '{0}ese', '{0}an', '{0}i')
PEOPLE = ('{0} {1}',) * 6 + (
    '{0} van {1}', '{0} de {1}', '{0} {2} {1}', '{0}', '{0} di {1}', '{0}-{2} {1}',
)  # fmt: skip
THINGS = (
    'Bridge', 'Orchard', 'Ferryman', 'Weaver', 'Candle', 'Mirror', 'Harvest', 'Storm', 'Garden', 'Mill',
    'Harbor', 'Procession', 'Banquet', 'Dream', 'Lantern', 'Messenger', 'Pilgrim', 'Blacksmith', 'Quarry',
    'Meadow', 'Window', 'Stairs', 'Concert', 'Reader', 'Letter', 'Parrot', 'Falcon', 'Stag', 'Oxen',
    'Ruins', 'Aqueduct', 'Chapel', 'Judge', 'Miser', 'Painter', 'Orphan', 'Bather', 'Rower', 'Archer',
    'Lemon', 'Oyster', 'Violin', 'Globe', 'Skull', 'Peacock', 'Thunder', 'Evening', 'Dawn', 'Frost',
    'Lion', 'Flight', 'Flowers', 'Moon', 'Sun', 'Wheat Field', 'Trees', 'Houses', 'Pot', 'Apples',
)  # fmt: skip
KINDS = (
    'Old', 'Young', 'Blind', 'Silent', 'Broken', 'Golden', 'Distant', 'Sleeping', 'Penitent', 'Great',
)  # fmt: skip
# {p} a person, {g} and {h} first names, {l} a place, {n} and {m} things, {k} a kind of them, {y} and
# {z} years.
PAINTINGS = (
    'Portrait of {p}', '{p} ({y}–{z})', '{p} (died {y})', 'Madame {p}', 'View of {l}', 'The {n} of {l}',
    '{n} near {l}', '{n} and {m} at {l}', 'Saint {g} in the Wilderness', 'Saint {g} and the {n}',
    'The {k} {n}', '{k} {n} with {m}', 'The {n} and the {m}', 'Still Life with {n} and {m}', 'Queen {g}',
    '{g} and {h}', 'The Abduction of {g}', 'The Death of {g}', 'Study for "The {n} of {l}"',
    'The {n} ({l})', "The {n}'s {m}", 'The {n}; The {m}', 'Study of the {k} {n}', '{g} Searching for {h}',
    'The {l} {n}', '{n} with the {k} {m}',
)  # fmt: skip


def pick(rng: np.random.Generator, some: Sequence) -> Any:
    """One of some, each as likely."""
    return some[rng.integers(len(some))]


class Names:
    """Draws names of one split.

    Args:
        letters: models by language.
        held: what no name may share.
        validation: whether the words are those that the split 'train' never has.
    """

    def __init__(self, letters: Mapping[str, Letters], held: HeldOut, validation: bool):
        self.letters, self.held, self.validation = letters, held, validation
        self.languages = tuple(letters)
        self.things = tuple(t for t in THINGS if not held.shares(t))

    def language(self, rng: np.random.Generator) -> str:
        """Any language."""
        return pick(rng, self.languages)

    def word(self, rng: np.random.Generator, language: str) -> str:
        """A word of this split in a language."""
        while True:
            word = self.letters[language].word(rng)
            mine = (zlib.crc32(word.lower().encode()) % VALIDATION_PART == 0) == self.validation
            if mine and self.held.words.isdisjoint(content_words(word)):
                return word

    def of(self, rng: np.random.Generator, patterns: tuple[str, ...], language: str) -> str:
        """A name of one of the patterns.

        Args:
            rng: the only source of randomness.
            patterns: with gaps for words, {0} to {2}.
            language: of the words.
        """

        def name() -> str:
            words = [self.word(rng, language) for _ in range(3)]
            return pick(rng, patterns).format(*words)

        return self._allowed(name)

    def painting(self, rng: np.random.Generator, language: str) -> str:
        """A painting's title without its painter."""

        def title() -> str:
            born = int(rng.integers(1380, 1890))
            return pick(rng, PAINTINGS).format(
                p=self.of(rng, PEOPLE, language),
                g=self.word(rng, language),
                h=self.word(rng, language),
                l=self.word(rng, language),
                n=pick(rng, self.things),
                m=pick(rng, self.things),
                k=pick(rng, KINDS),
                y=born,
                z=born + int(rng.integers(18, 90)),
            )

        return self._allowed(title)

    def _allowed(self, draw: Callable[[], str]) -> str:
        """The first name drawn that is short enough and shares nothing."""
        while True:
            name = draw()
            if len(name) <= LONGEST_TITLE and not self.held.shares(name):
                return name
