"""Reading and copying of the base policy: pages with questions that quote them."""

from __future__ import annotations

import numpy as np

from sensesearch_jax.pocket.pretraining.example import Example
from sensesearch_jax.pocket.pretraining.pages import Pages


class ReadingQuestions:
    """Pages to say again, to look a key up in, or of numbered results to be asked about; from one
    line to many.

    Copying is learned from short pages within minutes and from long ones alone not at all; once it
    is there, it grows with the pages.
    """

    # Markup to be said again, in no order: the tokens of the protocol become words like others,
    # without their meaning.
    MARKUP = (
        '<think>', '</think>', '<answer>', '</answer>', '<tool_call>', '</tool_call>', '{"name": "',
        '"arguments": {', '"bbox": [', '"query": "', '"image_index": 2', '"}}', '"}', ']}}',
        'image_crop', 'image_search', 'text_search', '[0.2, 0.1, 0.5, 0.4]', '\n', '<b>', '</b>',
        '{"', '": "', '": [', ', ',
    )  # fmt: skip
    SHORT = 64  # tokens; up to here a page is one line and one question

    def __init__(self, pages: Pages):
        self.pages = pages

    def __call__(self, rng: np.random.Generator, tokens: int, cloze: bool = False) -> Example:
        """An example that takes about `tokens` as a dialogue of page, questions and answers, at times
        more.

        Args:
            rng: decides everything.
            tokens: of the dialogue, about.
            cloze: fewer questions, whose answers stand within sentences.
        """
        example = self._plain(rng, tokens)
        if not cloze:
            return example
        return example._replace(
            pairs=[self.pages.cloze(rng, *pair) for pair in example.pairs[: max(1, tokens // 90)]]
        )

    def _plain(self, rng, tokens: int) -> Example:
        choice = rng.random()
        if choice < (0.5 if tokens <= self.SHORT else 0.15):
            return self._echo(rng, tokens)
        if tokens <= self.SHORT or choice < 0.3:
            return self._lookup(rng, tokens)
        return self._titles(rng, tokens) if choice < 0.5 else self._entries(rng, tokens)

    def _example(self, rng, tokens: int, text: str, pairs: list[tuple[str, str]]) -> Example:
        return Example(self.pages.system(rng, tokens), None, text, pairs)

    def markup(self, rng: np.random.Generator, tokens: int) -> Example:
        """An example of markup and names in no order, to be said again."""

        def piece():
            return str(rng.choice(self.MARKUP)) if rng.random() < 0.8 else self.pages.value(rng)

        text = ''.join(piece() for _ in range(rng.integers(3, 3 + tokens // 24))).strip() or '{"'
        return self._example(rng, tokens, text, [('Say that again.', text)])

    def namesakes(self, rng: np.random.Generator, tokens: int) -> Example:
        """Numbered names of few words that come back in each: all before tells how one goes on."""
        pool = [*rng.choice(self.pages.words, 5), 'the', 'of', 'de']
        names = [
            ' '.join(rng.choice(pool, rng.integers(2, 7)))
            for _ in range(rng.integers(1, 2 + tokens // 40))
        ]
        values = [self.pages.value(rng) for _ in names]
        pairs = []
        for i in rng.integers(len(names), size=max(1, tokens // 50)):
            asked = (
                ('Title of result {}?', names[i]),
                ('What is the value of {}?', values[i]),
                ('Say result {} again.', f'{names[i]}: {values[i]}'),
            )[rng.integers(3)]
            pairs.append((asked[0].format(names[i] if asked[1] == values[i] else i + 1), asked[1]))
        text = '\n'.join(
            f'{i}. {name}: {value}' for i, (name, value) in enumerate(zip(names, values), 1)
        )
        return self._example(rng, tokens, text, pairs)

    def _echo(self, rng, tokens: int) -> Example:
        """Words, names and numbers in no order, to be said again."""
        text = '; '.join(self.pages.value(rng) for _ in range(rng.integers(1, 1 + tokens // 16)))
        return self._example(rng, tokens, text, [('Say that again.', text)])

    def _lookup(self, rng, tokens: int) -> Example:
        """Keys and values in no order; a key asks for its value."""
        found = [
            (self.pages.value(rng), self.pages.value(rng))
            for _ in range(rng.integers(1, 1 + tokens // 16))
        ]
        asked = [found[i] for i in rng.integers(len(found), size=max(1, tokens // 50))]
        text = '; '.join(f'{key}: {value}' for key, value in found)
        return self._example(rng, tokens, text, [(f'{key}?', value) for key, value in asked])

    def _entries(self, rng, tokens: int) -> Example:
        """Numbered results as of an encyclopaedia: a field, a title, an entry's name and key."""
        pages = self.pages
        entries = []
        for _ in range(rng.integers(1, 5)):
            name, title, found = pages.fields[rng.integers(len(pages.fields))]
            found = [found[i] for i in rng.permutation(len(found))[:4]]
            if rng.random() < 0.6:
                new = pages.name(rng)
                title, name = title.replace(name, new), new
            if rng.random() < 0.6:
                found = [(k, pages.value(rng)) for k, _ in found]
            entries.append((name, title, found))
        lines, used = [], []
        for name, title, found in entries:
            line = f'{len(lines) + 1}. {title}: ' + '; '.join(f'{k}: {v}' for k, v in found)
            # the rest is left to the questions
            if sum(map(len, lines)) + len(line) > tokens and used:
                break
            lines.append(line)
            used.append((name, title, found))
        pairs = []
        for _ in range(tokens // 50):
            number = int(rng.integers(len(used)))
            name, title, found = used[number]
            key, value = found[rng.integers(len(found))]
            choice = rng.random()
            if choice < 0.7:
                ask = (f'What is the {key} of {name}?', f'{key} of {name}?', f'{name}: {key}')[
                    rng.integers(3)
                ]
                pairs.append((ask, value))
            elif choice < 0.85:
                pairs.append((f'Title of result {number + 1}?', title))
            else:
                pairs.append((f'Say "{name} {key}" again.', f'{name} {key}'))
        return self._example(rng, tokens, '\n'.join(lines), pairs)

    def _titles(self, rng, tokens: int) -> Example:
        """Numbered titles, as an image search gives them: one again, or what it shows."""
        pages = self.pages
        kind = rng.random() < 0.6

        def title():
            return (
                f'Flag of {pages.name(rng)}'
                if kind
                else f'{pages.value(rng).capitalize()}, by {pages.name(rng)}'
            )

        names = [
            pages.titles[rng.integers(len(pages.titles))] if rng.random() < 0.4 else title()
            for _ in range(rng.integers(1, 2 + tokens // 100))
        ]
        pairs = []
        for _ in range(tokens // 50):
            number = int(rng.integers(len(names)))
            if rng.random() < 0.5:
                pairs.append((f'Title of result {number + 1}?', names[number]))
            else:
                subject = names[number].removeprefix('Flag of ').replace(', by ', ' ')
                pairs.append((f'What does result {number + 1} show?', subject))
        text = '\n'.join(f'{i}. {n}' for i, n in enumerate(names, 1))
        return self._example(rng, tokens, text, pairs)
