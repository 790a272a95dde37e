"""Dialogues in Qwen's tool-call format about the passages that a search has given: one question after
another, so that many values are read out of one response.

Reading the asked field among similar ones is a matter of practice: digits are single tokens, and years
of one life begin alike, as their labels end alike, so that the last token or two do not tell how a value
goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sensesearch_jax.agent.observations import text_search_parts
from sensesearch_jax.agent.tool_client import Passage
from sensesearch_jax.pocket.invented.names import pick
from sensesearch_jax.pocket.invented.records import Record
from sensesearch_jax.pocket.pretraining.example import Dialogue, Example, Turn
from sensesearch_jax.pocket.pretraining.option_dialogues import told, with_options
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.tool_dialogues import ToolDialogues
from sensesearch_jax.pocket.pretraining.tool_prompts import ToolPrompt, answer, call
from sensesearch_jax.pocket.world.observation_limits import LIMITS
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS, PLACES, thing
from sensesearch_jax.rewards.evidence import quoted

QUESTIONS = 8  # in a dialogue, at most
OPTIONS = 0.15  # of the questions, with lettered ones to choose from
# Sources of a passage: an invented record, a real training passage, keys with values of any tokens,
# keys that end alike with values that begin alike.
INVENTED, REAL, ANY, ALIKE = range(4)
SHARES = (0.35, 0.2, 0.15, 0.3)
OF_NUMBERS = (0.3, 0.0, 0.0, 0.7)  # for a reader of numbers alone
ENDS = (' {0}', ', {0} in', ' of {0}', ' {0} {1}', ', {0} {1}')  # of keys, with words in the gaps
READ = (
    'The {key} is {value}.',
    'The {key} is {value}.',
    'It says {value}.',
    '{key}: {value}.',
    'Here the {key} of {name} is {value}.',
    'I read the {key}: {quote}.',
    'I read the {key}: {quote}.',
    'It says "{quote}".',
)
FURTHER = ('And the {key}?', '{key}?', 'What is the {key}?')
FURTHER_OF = ('Now the {key} of {name}.', 'What is the {key} of {name}?')


class Asked(NamedTuple):
    """Something that a passage says.

    Attributes:
        name: of the thing that it says it of.
        key: in words of questions: of the label what stands before a comma.
        value: as the passage says it.
        quote: the passage's words, from the label to the value.
        question: in the words of the world; '' where there is none.
    """

    name: str
    key: str
    value: str
    quote: str
    question: str


class PassageDialogues:
    """Text dialogues, each about the two passages of one response.

    Args:
        tools: draws invented entities and shortens passages.
        pages: real training passages, and words.
        shares: of the sources of a passage.
        years: share of passages whose values are alike in which they are years and other numbers.
    """

    def __init__(
        self,
        tools: ToolDialogues,
        pages: Pages,
        shares: Sequence[float] = SHARES,
        years: float = 0.6,
    ):
        self.tools, self.pages, self.shares, self.years = tools, pages, shares, years
        self.held = tools.world.records.held

    def __call__(self, rng: np.random.Generator, tokens: int) -> Example:
        """An example of one dialogue, whatever `tokens` it is to have."""
        prompt = ToolPrompt.draw(rng, self.pages.words, ('string',), 1)
        (finder,) = prompt.wanted
        asked: list[Asked] = []
        while not asked:
            passages, asked = self._passages(rng)
        (shown,) = text_search_parts(passages, LIMITS)
        chosen = [asked[i] for i in rng.permutation(len(asked))[:QUESTIONS]]
        several = {key for key, count in Counter(one.key for one in asked).items() if count > 1}
        query = f'the {chosen[0].key} of {chosen[0].name}'
        looked_up = call(f'I look up {query}.', finder, query)
        turns = [Turn(looked_up, looked_up, after=(shown,), of_tool=True)]
        questions = [self._question(rng, one, one.key in several) for one in chosen]
        answers = [one.value for one in chosen]
        for i, one in enumerate(chosen):
            if rng.random() < OPTIONS and (others := self._others(rng, one, asked)):
                questions[i], answers[i] = with_options(rng, questions[i], one.value, others)
        for one, said, following in zip(chosen, answers, [*questions[1:], '']):
            read = pick(rng, READ).format(
                key=one.key, name=one.name, value=one.value, quote=one.quote
            )
            if said != one.value:
                read = told(questions[len(turns) - 1], said)
            turns.append(Turn(answer(read, said), after=(following,) if following else ()))
        return Example(prompt.system(), None, '', [], dialogues=[Dialogue(questions[0], turns)])

    def _others(self, rng, one: Asked, asked: list[Asked]) -> list[str]:
        """Up to three other values of the response, as wrong options."""
        values = {other.value for other in asked} - {one.value}
        return rng.permutation(sorted(values))[:3].tolist()

    def _question(self, rng, one: Asked, of_several: bool) -> str:
        """The question that asks for it; one of several with its key is named."""
        if of_several:
            return pick(rng, FURTHER_OF).format(key=one.key, name=one.name)
        if one.question and rng.random() < 0.5:
            return one.question
        return pick(rng, (*FURTHER, *FURTHER_OF)).format(key=one.key, name=one.name)

    def _passages(self, rng) -> tuple[list[Passage], list[Asked]]:
        """The passages of a response, and what can be asked about them."""
        passages: list[Passage] = []
        asked, entity = [], None
        while len(passages) < LIMITS.text_results:
            source = int(rng.choice(len(self.shares), p=self.shares))
            if source == INVENTED:
                if entity is None or rng.random() < 0.4:
                    entity = self.tools.entity(rng)
                passage, said = self._invented(rng, *entity)
            else:
                passage, said = self._listed(rng, source)
            if passage not in passages:
                passages.append(passage)
                keys = Counter(one.key for one in said)
                asked += [
                    one
                    for one in said
                    if keys[one.key] == 1 and one.value in passage.text[: LIMITS.passage_chars - 1]
                ]
        return passages, asked

    def _listed(self, rng, source: int) -> tuple[Passage, list[Asked]]:
        """Keys with their values: those of a real passage, of any tokens, or such as are alike."""
        while True:
            if source == REAL:
                name, title, pairs = pick(rng, self.pages.fields)
                pairs = [pairs[i] for i in rng.permutation(len(pairs))[:4]]
            else:
                name = title = self.any(rng)
                count = int(rng.integers(2, 5))
                if source == ANY:
                    keys = [self._key(rng) for _ in range(count)]
                    pairs = list(zip(keys, self._values(rng, count)))
                else:
                    pairs = list(zip(self._keys_alike(rng, count), self._values_alike(rng, count)))
            text = '; '.join(f'{key}: {value}' for key, value in pairs)
            held = any(value.lower() in self.held.values for _, value in pairs)
            if not held and self.held.may_show({'id': '', 'title': title, 'text': text}):
                return Passage(title, text, 1.0), [
                    Asked(name, key.split(', ')[0], value, f'{key}: {value}', '')
                    for key, value in pairs
                ]

    def _invented(
        self, rng, kind: str, title: str, name: str, noun: str, record: Record
    ) -> tuple[Passage, list[Asked]]:
        """A passage of an invented record; its facts are asked for as the world's questions do."""
        fields = [field for field in FACT_FIELDS[kind] if field.name in record.facts]
        stating = pick(rng, fields) if fields else None
        wanted = record.stated[stating.name] if stating else record.passages[0]['id']
        passage = next(p for p in record.passages if p['id'] == wanted)
        query = f'the {stating.sought} of {name}' if stating else name
        text = self.tools.cut(passage['text'], query)
        asked = [
            Asked(
                name,
                field.sought,
                record.facts[field.name],
                quoted([text], record.facts[field.name], field.sought),
                pick(rng, field.phrasings).format(thing(kind, noun, pick(rng, tuple(PLACES)))),
            )
            for field in fields
            if record.stated[field.name] == wanted
        ]
        return Passage(passage['title'], text, 1.0), asked

    def _key(self, rng) -> str:
        """The key of a real passage."""
        _, _, pairs = pick(rng, self.pages.fields)
        return pick(rng, pairs)[0]

    def _keys_alike(self, rng, count: int) -> list[str]:
        """Different keys that end with the same words."""
        end = pick(rng, ENDS).format(*rng.choice(self.pages.words, 2))
        own = rng.choice(self.pages.words, (count, 2), replace=False)
        return [f'{" ".join(words[: rng.integers(1, 3)])}{end}' for words in own]

    def _values_alike(self, rng, count: int) -> list[str]:
        """Different values that begin with the same digits or word."""
        if rng.random() < self.years:
            return self._years(rng, count)
        begun, values = self.tools.loose_words(rng).split()[0], []
        while len(values) < count:
            value = f'{begun}{pick(rng, ("", " "))}{self.any(rng)}'
            if not any(value in other or other in value for other in values):
                values.append(value)
        return values

    def _values(self, rng, count: int) -> list[str]:
        """Values of any kind, or years of one time and numbers that begin with them, all different."""
        if rng.random() < 0.6:
            return [self.any(rng) for _ in range(count)]
        return self._years(rng, count)

    def _years(self, rng, count: int) -> list[str]:
        """Years of one time and numbers that begin with them, all different."""
        first, values = int(rng.integers(1400, 2000)), []
        while len(values) < count:
            year = str(first + rng.integers(60))
            if rng.random() < 0.2:
                year = f'{year}.{rng.integers(1, 400)}'
            if not any(year in other or other in year for other in values):
                values.append(year)
        return values

    def any(self, rng) -> str:
        """A value of a few tokens of any kind, or a number."""
        choice = rng.random()
        if choice < 0.3:
            return str(rng.integers(1400, 2025))
        if choice < 0.4:
            return '.'.join(str(rng.integers(1, 400)) for _ in range(rng.integers(2, 4)))
        return self.tools.loose_words(rng)
