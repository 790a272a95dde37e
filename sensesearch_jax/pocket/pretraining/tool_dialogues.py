"""Dialogues in Qwen's tool-call format with made-up tools: what a response shows goes into the next
call or the answer; a mistake is mended.

Names, facts and passages are of the invented world. The turns before the one that is learned are
given, so that no chain of tools is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from sensesearch_jax.agent.observations import text_search_parts
from sensesearch_jax.agent.tool_client import Passage
from sensesearch_jax.pocket.invented.names import LONGEST_TITLE, pick
from sensesearch_jax.pocket.invented.records import Record
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.example import Dialogue, Example, Turn
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.tool_prompts import (
    Tool,
    ToolPrompt,
    answer,
    call,
    up_to_value,
)
from sensesearch_jax.pocket.world.observation_limits import LIMITS
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS, PLACES, shown, thing
from tools_server.backends.snippet import snippet
from tools_server.backends.text_analysis import splitter

REPEATED = 0.15  # of the names, with a piece that comes twice
LONGER = 0.1  # with a comma, brackets or quotes and more behind them
LOOSE = 0.2  # of words and pieces of words that have nothing to do with each other
INITIALS = 'ABCDEFGHJKLMNPRSTVWY'
KEPT = 600  # entities that lessons come back to before others take their places

PLANS = (
    'First {0}, then {1}.',
    'Use {0} and then {1}.',
    'For this take {0}; what it says goes to {1}.',
    'Begin with {0}. Go on with {1}.',
)
NAMED = (
    'That is {title}. I ask for the {key}.',
    '{title}: now its {key}.',
    'It is called {name}, so I want the {key} of {name}.',
    'The first one is {title}. {words}.',
    '{words}.',
    'I need {words}.',
    'I go on with {words}.',
)
WORDS = ('the {key} of {name}', 'the {key} of {name}', '{name} {key}', '{key} of {name}', '{name}')
READ = (
    'The {key} is {value}.',
    'It says {value}.',
    'Here the {key} of {name} is {value}.',
    'Result {line} has the {key}: {value}.',
    '{key}: {value}.',
)
AGAIN = ('Nothing came. I try {words}.', 'No luck; now {words}.', 'Not found. {words}, then.')
MENDED = ('That call was wrong. I mend it.', 'I see the mistake.', 'Once more, as it should be.')
FURTHER_NAMES = (
    '{0}, possibly {1}', '{0}, Later {1}', '{0}, {1}', '{0} ({1})', '{0} and {1}', '{0}: {1}', '{0} "{1}"',
)  # fmt: skip
NOTHING = ('No results.', 'No results.', 'Nothing found.', '0 results')


def word_pieces(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokens that are words or parts of words, with the blank before them."""
    texts = (tokenizer.decode([i], False) for i in range(tokenizer.get_vocab_size()))
    return [text for text in texts if re.fullmatch(r" ?[^\W_][\w'’-]*", text)]


class ToolDialogues:
    """Text dialogues of one split of the invented world.

    Args:
        world: where names and facts come from.
        pages: where the words of tools come from.
        pieces: texts of the tokens that loose words are made of.
    """

    def __init__(self, world: InventedWorld, pages: Pages, pieces: Sequence[str]):
        self.world, self.pages, self.pieces = world, pages, pieces
        self._entities: list[tuple[str, str, str, str, Record]] = []
        self._words_of = splitter()

    def entity(self, rng: np.random.Generator) -> tuple[str, str, str, str, Record]:
        """Kind, title, name, noun and record of an invented entity without its picture."""
        if len(self._entities) == KEPT and rng.random() < 0.9:
            return self._entities[rng.integers(KEPT)]
        kind = ('flag', 'painting')[rng.integers(2)]
        name, artist, language = self.world.title(rng, kind)
        name = self._varied(rng, name, language)
        if artist:
            record = self.world.records.painting(rng, 'lesson', name, artist, language)
            found = kind, f'{name}, by {artist}', name, 'painting', record
        else:
            noun = ('country', 'country', 'territory')[rng.integers(3)]
            record = self.world.records.flag(rng, 'lesson', name, language)
            found = kind, f'Flag of {name}', name, noun, record
        if len(self._entities) < KEPT:
            self._entities.append(found)
        else:
            self._entities[rng.integers(KEPT)] = found
        return found

    def _varied(self, rng: np.random.Generator, name: str, language: str) -> str:
        """The name or another one that is harder to copy, never a held-out one."""
        choice = rng.random()
        if choice < REPEATED:
            return with_repetition(rng, name)
        if choice < REPEATED + LONGER:
            other = self.world.names.word(rng, language)
            varied = pick(rng, FURTHER_NAMES).format(name, other)
        elif choice < REPEATED + LONGER + LOOSE:
            varied = self.loose_words(rng)
        else:
            return name
        fits = len(varied) <= LONGEST_TITLE and max(map(len, varied.split())) > 3
        return varied if fits and not self.world.names.held.shares(varied) else name

    def loose_words(self, rng: np.random.Generator) -> str:
        """One to five words and pieces of words of any kind."""
        some = rng.integers(len(self.pieces), size=rng.integers(1, 6))
        return ''.join(self.pieces[i] for i in some).strip() or '–'

    def __call__(self, rng: np.random.Generator, tokens: int) -> Example:
        """An example of one dialogue, whatever `tokens` it is to have."""
        while True:
            kind, title, name, noun, record = self.entity(rng)
            fields = [f for f in FACT_FIELDS[kind] if f.name in record.facts]
            if fields:
                break
        field = pick(rng, fields)
        prompt = ToolPrompt.draw(rng, self.pages.words, ('none', 'string'), 2)
        namer, finder = prompt.wanted
        what = (
            shown(noun, kind) if rng.random() < 0.4 else thing(kind, noun, pick(rng, list(PLACES)))
        )
        asked = pick(rng, field.phrasings).format(what)
        planned = rng.random() < 0.5
        if planned:
            asked += ' ' + pick(rng, PLANS).format(*(_told(rng, tool) for tool in prompt.wanted))
        turns = []
        first = call(pick(rng, (f'I want the {field.name}.', 'I begin.', asked)), namer)
        if rng.random() < 0.25:
            turns += self._mistake(rng, prompt, namer, None, planned)
        else:
            turns.append(Turn(first, given='' if planned else first))
        turns[-1] = turns[-1]._replace(after=(self._titles(rng, title),), of_tool=True)
        words = pick(rng, WORDS).format(key=field.sought, name=name)
        said = pick(rng, NAMED).format(title=title, name=name, key=field.name, words=words)
        if rng.random() < 0.15:
            lost = call(said, finder, f'the {field.sought}')
            turns.append(Turn(lost, given=lost, after=(pick(rng, NOTHING),), of_tool=True))
            said = pick(rng, AGAIN).format(words=words)
        query = call(said, finder, words)
        # Where no plan says it, that there is a call and of which tool is given. What is copied
        # from the response never is.
        value = up_to_value(query, finder)
        begun = query[: query.index(name)] if name in said else value
        query = Turn(query) if planned else Turn(query, begun, value[value.index('</think>') :])
        passages, line = self._passages(rng, record, field.name, words)
        turns.append(query._replace(after=(passages,), of_tool=True))
        value = record.facts[field.name]
        read = pick(rng, READ).format(key=field.name, name=name, value=value, line=line)
        turns.append(Turn(answer(read, value)))
        return Example(prompt.system(), None, '', [], dialogues=[Dialogue(asked, turns)])

    def _mistake(self, rng, prompt: ToolPrompt, tool: Tool, value, planned: bool) -> list[Turn]:
        """A call that is wrong, its error message, and the call as it should be."""
        wrong, message = pick(
            rng,
            (
                (tool._replace(name=f'{tool.name}s'), f"No tool '{tool.name}s'. Tools: "
                 + ', '.join(t.name for t in prompt.tools) + '.'),
                (tool._replace(kind='number'), f'{tool.name} has no argument {tool.argument!r}.'),
            ),
        )  # fmt: skip
        bad = call('I begin.', wrong, value if wrong.kind != 'number' else 1)
        right = call(pick(rng, MENDED), tool, value)
        # The message says which call was meant, so that all of the second try is to be learned.
        return [Turn(bad, given=bad, after=(message,), of_tool=True), Turn(right)]

    def _titles(self, rng, title: str) -> str:
        """Numbered titles, the right one first."""
        others = [self.entity(rng)[1] for _ in range(rng.integers(0, LIMITS.image_results))]
        return '\n'.join(f'{i}. {t}' for i, t in enumerate([title, *others], 1))

    def _passages(self, rng, record: Record, field: str, query: str) -> tuple[str, int]:
        """A text search's response, and in which line of it the fact stands."""
        right = next(p for p in record.passages if p['id'] == record.stated[field])
        if rng.random() < 0.6:
            others = [p for p in record.passages if p is not right]
        else:
            others = self.entity(rng)[4].passages
        chosen = [right, pick(rng, others)]
        if rng.random() < 0.25:
            chosen.reverse()
        texts = [self.cut(p['text'], f'{query} {field}') for p in chosen]
        value = record.facts[field]
        line = chosen.index(right)
        if value not in texts[line][: LIMITS.passage_chars]:
            texts[line] = f'{field}: {value}'  # the search would have cut it away
        found = [Passage(p['title'], text, 1.0) for p, text in zip(chosen, texts)]
        return text_search_parts(found, LIMITS)[0], line + 1

    def cut(self, text: str, query: str) -> str:
        """A passage as the tool server shortens it."""
        return snippet(text, query, LIMITS.passage_chars, self._words_of)


def with_repetition(rng: np.random.Generator, name: str) -> str:
    """The name with a word twice ("Bora Bora") or with initials before its last word ("X K. H. Y"); as it is
    where that would be too long.

    A copy goes wrong where a piece has come before: what followed it there is written again.

    Args:
        rng: the only source of randomness.
        name: of any words.
    """
    words = name.split(' ')
    if rng.random() < 0.5:
        place = int(rng.integers(len(words)))
        words.insert(place, words[place])
    else:
        words[-1:-1] = [f'{pick(rng, INITIALS)}.' for _ in range(rng.integers(2, 4))]
    longer = ' '.join(words)
    return longer if len(longer) <= LONGEST_TITLE else name


def _told(rng: np.random.Generator, tool: Tool) -> str:
    """How a plan speaks of a tool: by its name or by what it does."""
    purpose = tool.purpose.split(':')[0].rstrip('.')
    return tool.name if rng.random() < 0.6 else f'what {purpose[0].lower()}{purpose[1:]}'
