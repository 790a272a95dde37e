"""Held-out names: what no text to train on may say."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sensesearch_jax.pocket.world.files import Entity, PocketFiles

WORDLY_FACTS = ('capital', 'currency', 'highest point', 'national anthem')


def content_words(text: str) -> set[str]:
    """The words of four letters and more, in lower case."""
    return {
        word.lower() for word in re.findall(r"[^\W\d_](?:[^\W\d_]|['’])+", text) if len(word) > 3
    }


class HeldOut:
    """Names, words and facts of entities outside the split 'train'.

    Attributes:
        entities: of the splits 'validation' and 'test'.
        words: of their names, titles and named facts, but for those that training entities have as
            well ('portrait', 'saint', 'islands').
        values: their named facts and codes, in lower case.
    """

    def __init__(self, files: PocketFiles):
        everyone = files.entities.values()
        self.entities = [entity for entity in everyone if entity.split != 'train']
        taught = [entity for entity in everyone if entity.split == 'train']
        self.words = _words(self.entities) - _words(taught)
        self.values = {
            value.lower()
            for entity in self.entities
            for field, value in entity.facts.items()
            if field in WORDLY_FACTS or 'code' in field or field == 'accession number'
        }
        names = {name for entity in self.entities for name in (entity.subject, entity.title)}
        self._titles = {name.lower() for name in names} | {
            e.short_name.lower() for e in self.entities
        }
        # one by one: an alternation takes ten times as long
        self._names = [name.lower() for name in names]
        self._places = {
            p.split('/')[0] for entity in self.entities for p in entity.passages.values()
        }

    def may_show(self, passage: dict[str, str]) -> bool:
        """Whether a passage is of no held-out entity and names none."""
        if passage['id'].split('/')[0] in self._places:
            return False
        said = f'{passage["title"]} {passage["text"]}'.lower()
        return not any(name in said for name in self._names)

    def shares(self, name: str) -> bool:
        """Whether a name is a held-out one or has a word that only held-out ones have."""
        return name.lower() in self._titles or not self.words.isdisjoint(content_words(name))


def _words(entities: Iterable[Entity]) -> set[str]:
    texts = [entity.title for entity in entities]
    texts += [
        entity.facts[field]
        for entity in entities
        for field in WORDLY_FACTS
        if field in entity.facts
    ]
    return set().union(*map(content_words, texts))
