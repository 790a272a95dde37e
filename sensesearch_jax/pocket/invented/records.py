"""Records of invented entities: facts in the formats of the real ones, and passages in their words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sensesearch_jax.pocket.invented.names import (
    ADJECTIVES,
    ANTHEMS,
    CAPITALS,
    PEAKS,
    PEOPLE,
    Names,
    pick,
)
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.held_out import HeldOut
from sensesearch_jax.pocket.world.make_files.paintings import painting_passages

# Share of flags that have the fact, about as of the real ones.
FLAG_FACTS = {
    'capital': 0.92,
    'currency': 0.85,
    'highest point': 0.82,
    'national anthem': 0.75,
    'independence year': 0.65,
    'internet country code': 0.97,
    'coastline': 0.8,
    'airports': 0.95,
    'aircraft prefix': 0.9,
}
FURTHER = 18  # passages of a country that state none of them
PASSAGE = 500  # characters at most of those
PIGMENTS = (
    'Oil', 'Tempera', 'Gouache', 'Ink', 'Watercolor', 'Pastel', 'Casein', 'Chalk', 'Encaustic', 'Fresco',
    'Oil and gold', 'Ink and color',
)  # fmt: skip
GROUNDS = (
    'canvas', 'wood', 'paper', 'silk', 'copper', 'linen', 'slate', 'vellum', 'panel', 'parchment', 'cotton',
)  # fmt: skip
DEPARTMENTS = (
    'European Paintings', 'Asian Art', 'Modern Art', 'Drawings and Prints', 'Islamic Art',
)  # fmt: skip
NUMBER = r'(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)'
YEARS = range(1500, 1990)
RECENT = range(1990, 2031)  # years that passages speak of as today


class Record(NamedTuple):
    """Facts, the id of the passage that states each, other accepted answers, and all passages."""

    facts: dict[str, str]
    stated: dict[str, str]
    aliases: dict[str, list[str]]
    passages: list[dict[str, str]]


class _Source(NamedTuple):
    """A passage of a training country: its topic, text, the country's names and the value it states."""

    topic: str
    text: str
    names: tuple[str, ...]
    value: str


class Records:
    """Draws records; passages are those of training countries with other names and numbers.

    Args:
        files: the data folder.
        held: what no value may be.
        names: of the split.
    """

    def __init__(self, files: PocketFiles, held: HeldOut, names: Names):
        self.names, self.held = names, held
        flags = files.select('flag', 'train')
        self._stating: dict[str, list[_Source]] = {}
        used = set()
        for flag in flags:
            for field, value in flag.facts.items():
                passage = files.passages[flag.passages[field]]
                used.add(passage['title'].split(': ')[-1])
                # The origin of a name would speak of the old one.
                text = passage['text'].split('; etymology:')[0]
                for other in flag.aliases.get(field, ()) if field == 'national anthem' else ():
                    text = text.replace(f' ({other})', '')
                if re.search(_whole(value), text) and held.may_show(passage):
                    source = _source(passage['title'], text, flag.name, value)
                    self._stating.setdefault(field, []).append(source)
        known = {
            source.names[-1]: source.names for some in self._stating.values() for source in some
        }
        self._further = [
            _source(passage['title'], passage['text'], known[country][0], '')
            for passage in files.passages.values()
            if (country := passage['title'].split(' — ')[0]) in known
            and passage['title'].split(': ')[-1] not in used
            and len(passage['text']) <= PASSAGE
            and held.may_show(passage)
        ]

    def flag(self, rng: np.random.Generator, identity: str, name: str, language: str) -> Record:
        """The record of a country or territory.

        Args:
            rng: the only source of randomness.
            identity: of the entity.
            name: of the country.
            language: of its names.
        """
        facts, stated, aliases, passages = {}, {}, {}, []
        for field, share in FLAG_FACTS.items():
            if rng.random() > share:
                continue
            value, other = self._value(rng, field, name, language)
            facts[field] = value
            if other:
                aliases[field] = [other]
            source = pick(rng, self._stating[field])
            passages.append(
                _passage(rng, source, f'{identity}/{field.replace(" ", "-")}', name, value, other)
            )
            stated[field] = passages[-1]['id']
        topics = set()
        for index in rng.integers(len(self._further), size=2 * FURTHER):
            source = self._further[index]
            if source.topic not in topics and len(topics) < FURTHER:
                topics.add(source.topic)
                passages.append(_passage(rng, source, f'{identity}/{len(topics)}', name, '', ''))
        return Record(facts, stated, aliases, passages)

    def painting(
        self, rng: np.random.Generator, identity: str, title: str, artist: str, language: str
    ) -> Record:
        """The record of a painting.

        Args:
            rng: the only source of randomness.
            identity: of the entity.
            title: of the work.
            artist: who painted it.
            language: of their names.
        """
        born = int(rng.integers(1380, 1880))
        died = born + int(rng.integers(24, 92))
        made = int(rng.integers(born + 18, died + 1))
        acquired = int(rng.integers(1889, 2021))
        prefix = str(acquired if acquired >= 1970 else acquired % 100)
        while True:
            tail = '.'.join(str(rng.integers(1, 400)) for _ in range(rng.integers(1, 4)))
            if f'{prefix}.{tail}' not in self.held.values:
                break
        nationality = self.names.of(rng, ADJECTIVES, language)
        person = self.names.of(rng, PEOPLE, language)
        said = pick(rng, (str(made), str(made), f'ca. {made}', f'{made}–{str(made + 2)[-2:]}'))
        medium = f'{pick(rng, PIGMENTS)} on {pick(rng, GROUNDS)}'
        place = self.names.word(rng, language)
        high, wide = (int(v) for v in rng.integers(9, 120, 2))
        record = {
            'objectDate': said,
            'medium': medium
            if rng.random() < 0.8
            else f'{medium}, transferred from {pick(rng, GROUNDS)}; framed',
            'objectName': 'Painting',
            'dimensions': f'{high} × {wide} in. ({high * 2.54:.1f} × {wide * 2.54:.1f} cm)',
            'artistNationality': nationality,
            'artistBeginDate': str(born),
            'artistEndDate': str(died),
            'artistDisplayBio': f'{nationality}, {place} {born}–{died} {self.names.word(rng, language)}',
            'repository': f'{place} Museum of Art',
            'department': pick(rng, DEPARTMENTS),
            'accessionYear': str(acquired),
            'accessionNumber': f'{prefix}.{tail}',
            'GalleryNumber': str(rng.integers(1, 999)),
            'creditLine': f'{pick(rng, ("Gift", "Bequest"))} of {person}, {acquired}',
        }
        for key in ('GalleryNumber', 'artistDisplayBio', 'repository'):
            if rng.random() < 0.3:
                del record[key]
        facts, stated, passages = painting_passages(identity, title, artist, record)
        return Record(facts, stated, {}, passages)

    def _value(self, rng, field: str, name: str, language: str) -> tuple[str, str]:
        """A drawn fact, and another way of saying it or ''."""
        names = self.names

        def letters(count: int) -> str:
            return ''.join(chr(c) for c in rng.integers(ord('A'), ord('Z') + 1, count))

        def unheld(draw):
            while (value := draw()).lower() in self.held.values:
                pass
            return value

        if field == 'capital':
            return names.of(rng, CAPITALS, language), ''
        if field == 'currency':
            unit = names.word(rng, language).lower()
            adjective = names.of(rng, ADJECTIVES, language) + ' ' if rng.random() < 0.5 else ''
            return f'{adjective}{unit}', letters(3)
        if field == 'highest point':
            return names.of(rng, PEAKS, language), ''
        if field == 'national anthem':
            return names.of(rng, ANTHEMS, language), ''
        if field == 'independence year':
            return str(rng.integers(1776, 1994)), ''
        if field == 'internet country code':
            return unheld(lambda: f'.{letters(2).lower()}'), ''
        if field == 'coastline':
            return f'{int(10 ** rng.uniform(1.3, 4.4)):,} km', ''
        if field == 'airports':
            return f'{int(10 ** rng.uniform(0, 3)):,}', ''
        return unheld(
            lambda: letters(1) + str(rng.choice([letters(1), str(rng.integers(2, 10))]))
        ), ''


def _source(title: str, text: str, name: str, value: str) -> _Source:
    country, _, topic = title.partition(' — ')
    return _Source(topic, text, (name, country), value)


def _whole(text: str) -> str:
    """The pattern of a text that is no part of a longer word or number."""
    return rf'(?<![\w.,]){re.escape(text)}(?!\w|[.,]\d)'


def _passage(
    rng: np.random.Generator, source: _Source, identity: str, name: str, value: str, code: str
) -> dict[str, str]:
    """A training passage about another country, with other numbers.

    Args:
        rng: the only source of randomness.
        source: the training passage.
        identity: of the new one.
        name: of the country.
        value: that takes the place of the one it states.
        code: of a currency, '' for none.
    """
    swaps = {old: name for old in source.names}
    if value:
        swaps[source.value] = value
    olds = '|'.join(map(_whole, sorted(swaps, key=len, reverse=True)))
    label, _, said = source.text.partition(':')
    said = re.sub(f'{olds}|{NUMBER}', lambda found: _swap(rng, found[0], swaps), said)
    text = f'{label}:{said}'
    if code:
        text = re.sub(r'\([A-Z]{3}\)', f'({code})', text)
    return {'id': identity, 'title': f'{name} — {source.topic}', 'text': text}


def _swap(rng: np.random.Generator, old: str, swaps: Mapping[str, str]) -> str:
    """Stand-in for what is in a name's or a number's place: a number of the same form, a day or hour that
    there is, a year that has been; years of today stay.
    """
    if old in swaps:
        return swaps[old]
    if old.isdigit() and len(old) < 3:
        return str(rng.integers(1, max(4, int(old) + 1)))
    if old.isdigit() and YEARS.start <= int(old) < RECENT.stop:
        return old if int(old) in RECENT else str(rng.integers(YEARS.start, YEARS.stop))
    digits = re.sub(r'\d', lambda digit: str(rng.integers(10)), old)
    return digits if digits[0] != '0' else str(rng.integers(1, 10)) + digits[1:]
