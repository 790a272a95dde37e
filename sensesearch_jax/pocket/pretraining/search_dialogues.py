"""Search dialogues: they want a fact first, are then shown a name and at last the passages that
hold it.

What an agent needs of plain chat: to keep a question in mind over several turns, to name what it
looks for, and to answer in sentences of its own. No tool and no protocol occurs in them, and their
wording is not the scripted expert's.
"""

from __future__ import annotations

import re

import numpy as np

from sensesearch_jax.pocket.pretraining.example import Example
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.prompt_formats import Format
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS, PLACES, shown, thing

PASSAGE = 160  # characters of a passage at most, about what a search result shows
TOKENS = 400, 512  # of a dialogue, roughly: plain, in a format

ASKED = (
    'What is the {key} of {thing}?',
    'I want to know the {key} of {thing}.',
    'Find the {key} of {thing}.',
    'Which {key} has {thing}?',
    '{key} of {thing}?',
)
THINGS = (
    'the place that I show you',
    'this one',
    'the work in this picture',
    'the next one',
    'what you see here',
)
RESTATED = (
    'You want the {key} of {thing}.',
    'So it is the {key} of {thing} that I must find. What is it called?',
    'The {key} of {thing}: I need a name first.',
    'I shall tell you the {key}. First I must know {thing}.',
    '{key} of {thing}; show it to me.',
    'I am to find the {key} of {thing}. Which one is it?',
)
NOT_YET = (
    'Which one is it?',
    'I must know its name.',
    'Show it to me.',
    'I need a name before I can tell.',
    'What is it called?',
)
NAMED = (
    'That is {title}. I need its {key}, so I ask for "{name} {key}".',
    'So it is {title}; what is wanted is the {key}: ({name} {key})',
    "{title} comes first. Give me '{name} {key}', please.",
    'Its name is {name}. Words to find the {key}: "{name} {key}"',
    'I see {title} here, and the question was about the {key}. {name} {key}?',
    '"{name} {key}"',
    'It is called {title}. Now for the {key}. I want pages on "{name} {key}".',
)
# Before a call for pages; as often as not the words that it asks for.
SAID = (
    'That is {title}. I need its {key}.',
    '{title}: I ask for the {key}.',
    'It is called {title}. Now for its {key}.',
    'It shows {title}. What I look for is {words}.',
    'I see {title}. {words}, then.',
    '{words}',
    'So: {words}.',
)
WORDS = ('{name} {key}', '{key} of {name}', 'the {key} of {name}', '{key} {name}')
READ = (
    'It is {value}.',
    'Here I find {value}, so the {key} is "{value}".',
    'The {key} of {name} is {value}.',
    'For the {key} line {line} has {value}. So my answer is: {value}',
    '"{value}"',
    'As line {line} has it, {value} is the {key}.',
    'Line {line} tells of the {key}: {value}. Hence: ({value})',
    'Its {key} must be {value}. {value}',
)
NOT_THIS = (
    'That does not help yet.',
    'This is not what I need.',
    'I see. Go on.',
    'Nothing of it is in here.',
)
TITLES = ('Flag of {}', '{}', 'Map of {}', '{}, by {}', 'Portrait of {}', 'View of {}, by {}')
TAILS = ('', '', '', '', ' (2025)', ' ({})', ' 1,{} m', ' - ', ', {}')


class SearchDialogues:
    """Dialogues of about `tokens` tokens, one question after another.

    Names and values are replaced by invented ones as often as not, so that nothing but reading
    helps.
    """

    def __init__(self, files: PocketFiles, pages: Pages):
        self.files, self.pages = files, pages
        fields = {field.name: field for kind in FACT_FIELDS.values() for field in kind}
        taught = [e for e in files.entities.values() if e.split == 'train']

        def passage(e, name):
            return files.passages[e.passages[name]]

        self.stated = [
            (e, fields[name])
            for e in taught
            for name, value in e.facts.items()
            if word(value).search(passage(e, name)['text']) and pages.may_show(passage(e, name))
        ]

    def __call__(self, rng: np.random.Generator, tokens: int, formatted: bool = False) -> Example:
        """An example; its pairs follow one another in one dialogue. `formatted`: in a format that the
        system prompt gives.
        """
        pairs: list[tuple[str, str]] = []
        form = Format.draw(rng, self.pages.words) if formatted else None
        for _ in range(max(1, int(tokens // TOKENS[formatted]))):
            pairs += self._of_entity(rng, form) if rng.random() < 0.6 else self._of_page(rng, form)
        system = self.pages.system(rng, 2 * tokens // 3)
        if form:
            system = (
                f'{system[: tokens // 2]}\n{form.rule()}' if rng.random() < 0.7 else form.rule()
            )
        return Example(system, None, '', pairs)

    def _of_entity(self, rng, form: Format | None) -> list[tuple[str, str]]:
        """About a training entity, from the passage that states the fact."""
        pages = self.pages
        entity, field = self.stated[rng.integers(len(self.stated))]
        passage = self.files.passages[entity.passages[field.name]]
        place = list(PLACES)[rng.integers(len(PLACES))]
        what = (
            thing(entity.kind, entity.noun, place)
            if rng.random() < 0.7
            else shown(entity.noun, entity.kind)
        )
        asked = field.phrasings[rng.integers(len(field.phrasings))].format(what)
        title, value, text = entity.title, entity.facts[field.name], passage['text']
        head = passage['title']
        if rng.random() < 0.5:
            old, new = entity.name.split(', by ')[0], pages.name(rng)
            title, head, text, value = (
                part.replace(old, new) for part in (title, head, text, value)
            )
        name = title.removeprefix('Flag of ')
        if rng.random() < 0.6:
            new = pages.value(rng)
            text, value = word(value).sub(new, text), new
        key = field.search_words if rng.random() < 0.2 else field.name
        return self._dialogue(
            rng, form, asked, what, title, name, key, head, cut_around(text, value), value
        )

    def _of_page(self, rng, form: Format | None) -> list[tuple[str, str]]:
        """About an entry of any page, most of it invented."""
        pages = self.pages
        _, title, found = pages.fields[rng.integers(len(pages.fields))]
        key, value = found[rng.integers(len(found))]
        value = pages.value(rng) if rng.random() < 0.8 else value
        name, other = pages.name(rng), pages.name(rng)
        pattern = TITLES[rng.integers(len(TITLES))]
        subject = f'{name}, by {other}' if pattern.count('{}') > 1 else name
        tail = TAILS[rng.integers(len(TAILS))].format(rng.integers(100, 999))
        quote = '"' if rng.random() < 0.1 else ''
        stated = f'{key}: {"name: " if rng.random() < 0.1 else ""}{quote}{value}{quote}{tail}'
        rest = [f'{k}: {v}' for k, v in found if k != key][: rng.integers(0, 4)]
        rest.insert(int(rng.integers(len(rest) + 1)), stated)
        topic = title.split(' — ')[-1]
        what = THINGS[rng.integers(len(THINGS))]
        asked = ASKED[rng.integers(len(ASKED))].format(key=key, thing=what)
        return self._dialogue(
            rng,
            form,
            asked,
            what,
            pattern.format(name, other),
            subject,
            key,
            f'{subject} — {topic}',
            cut_around('; '.join(rest), value),
            value,
        )

    def _dialogue(
        self,
        rng,
        form: Format | None,
        asked: str,
        thing: str,
        title: str,
        name: str,
        key: str,
        head: str,
        text: str,
        value: str,
    ) -> list[tuple[str, str]]:
        """The turns: what is wanted, mostly said again; at times something beside it; names, of
        which the first counts; passages, one of which tells.
        """

        def pick(phrases):
            return phrases[rng.integers(len(phrases))]

        titles = [
            title,
            *(
                self.pages.titles[i]
                for i in rng.integers(len(self.pages.titles), size=rng.integers(3))
            ),
        ]
        other, other_head, found = self.pages.fields[rng.integers(len(self.pages.fields))]
        right = f'{head}: {text}'
        lines = [right]
        if rng.random() < 0.8:
            same = rng.random() < 0.5  # the same name with other facts, or another name
            known = '; '.join(f'{k}: {v}' for k, v in found)
            lines.append(
                f'{other_head.replace(other, name) if same else other_head}: {cut_around(known, "")}'
            )
        if len(lines) > 1 and rng.random() < 0.25:
            lines.reverse()
        line = 1 + lines.index(right)

        def numbered(entries):
            return '\n'.join(f'{i}. {entry}' for i, entry in enumerate(entries, 1))

        beside = [(self.pages.filler(rng), pick(NOT_THIS)) for _ in range(rng.integers(3))]
        first = pick(RESTATED if rng.random() < 0.8 else NOT_YET)
        named = pick(NAMED).format(title=title, name=name, key=key)
        read = pick(READ).format(value=value, name=name, key=key, line=line)
        first = first.format(key=key, thing=thing)
        if form:
            words = pick(WORDS).format(name=name, key=key)
            first = form.write_call(first, Format.NAME)
            beside = [(other, form.write_call(said, Format.NAME)) for other, said in beside]
            named = form.write_call(
                pick(SAID).format(title=title, key=key, words=words), Format.FIND, words
            )
            read = form.write_reply(read, value)
        return [(asked, first), *beside, (numbered(titles), named), (numbered(lines), read)]


def word(text: str) -> re.Pattern:
    """Finds `text` where it is no part of a longer word or number."""
    return re.compile(rf'(?<![\w.,]){re.escape(text)}(?!\w|[.,]\d)')


def cut_around(text: str, value: str) -> str:
    """At most PASSAGE characters of `text` that hold `value`, with '…' where something is left out."""
    start = text.find(value) if value else 0
    first = 0 if start + len(value) <= PASSAGE else max(0, start - PASSAGE // 3)
    part = text[first : first + max(PASSAGE, len(value))].strip()
    return f'{"… " if first else ""}{part}{"…" if first + len(part) < len(text) else ""}'
