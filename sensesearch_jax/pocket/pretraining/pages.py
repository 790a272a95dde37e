"""Texts to read and to copy from, without held-out entities."""

from __future__ import annotations

import re

import numpy as np

from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.held_out import HeldOut


class Pages:
    """Reading and copying: numbered results in the style of encyclopaedia entries, questions that
    quote them.

    Names and values are shuffled among entries and often replaced by invented words, so that
    nothing but reading the page can answer. Passages that name a held-out entity are left out.
    """

    FIELD = re.compile(r'([^;:]{3,40}): ([^;:]{1,60})(?:;|$)')

    def __init__(self, files: PocketFiles):
        held = HeldOut(files)
        self.may_show = held.may_show
        self.passages = [p for p in files.passages.values() if self.may_show(p)]
        self.fields = []
        for passage in self.passages:
            found = [(k.strip(), v.strip()) for k, v in self.FIELD.findall(passage['text'])]
            found = [(k, v) for k, v in found if 1 <= len(v.split()) <= 6]
            if found:
                self.fields.append((passage['title'].split(' — ')[0], passage['title'], found))
        self.titles = [e.title for e in files.entities.values() if e.split == 'train']
        words = {w for p in self.passages[::7] for w in re.findall(r'[A-Za-z]{4,}', p['text'])}
        self.words = np.array(sorted(words))

    def system(self, rng, characters: int = 110, stretches: int = 1) -> str:
        """A system prompt: as often as not a plain one, else stretches of text to look past.

        Args:
            rng: the only source of randomness.
            characters: of a stretch at most.
            stretches: of text, a line each.
        """
        if rng.random() < 0.5:
            return 'You are a helpful assistant.'
        return '\n'.join(self.filler(rng, characters) for _ in range(stretches))

    def filler(self, rng, characters: int = 300) -> str:
        """The beginning of some passage."""
        text = self.passages[rng.integers(len(self.passages))]['text']
        return text[: int(rng.integers(20, characters))]

    def cloze(self, rng, question: str, answer: str) -> tuple[str, str]:
        """A cloze, often: the answer then stands within a sentence that has nothing to do with it.

        Else what was learned holds for answers that follow their question at once, and for no
        others.

        Args:
            rng: the only source of randomness.
            question: as asked plainly.
            answer: alone.
        """
        if rng.random() < 0.5 or '[' in answer and not answer.startswith('['):
            return question, answer
        before = ' '.join(rng.choice(self.words, rng.integers(1, 6)))
        after = ('', '.', ', I see.', ' ' + ' '.join(rng.choice(self.words, rng.integers(1, 4))))[
            rng.integers(4)
        ]
        opening, closing = (('', ''), ('"', '"'), ('(', ')'), ("'", "'"))[rng.integers(4)]
        return (
            f'{question} Fill in: {before} {opening}_{closing}{after}',
            f'{before} {opening}{answer}{closing}{after}',
        )

    def name(self, rng) -> str:
        """An invented name of one to three words, from syllables that no reader has seen together."""

        def syllable():
            return ''.join(
                rng.choice(list(s)) for s in ('bcdfghjklmnprstvz', 'aeiou', 'nrlstm '[:6])
            )

        return ' '.join(
            ''.join(syllable() for _ in range(rng.integers(1, 4))).capitalize()
            for _ in range(rng.integers(1, 4))
        )

    def value(self, rng) -> str:
        """Something to copy: words, an invented name, a year or a number."""
        choice = rng.random()
        if choice < 0.4:
            return ' '.join(rng.choice(self.words, rng.integers(1, 5)))
        if choice < 0.7:
            return self.name(rng)
        return (
            str(rng.integers(1, 3000))
            if choice < 0.9
            else f'{rng.integers(1, 99)}.{rng.integers(1, 999)}'
        )
