"""Lettered options: questions with some to choose from, and dialogues of nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from sensesearch_jax.agent.protocol import lettered
from sensesearch_jax.pocket.invented.names import pick
from sensesearch_jax.pocket.pretraining.example import Dialogue, Example, Turn
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.tool_prompts import ToolPrompt, answer
from sensesearch_jax.pocket.world.colours import NAMES

LETTERS = 'ABCDEF'
LISTS = 3  # of options in a dialogue
ASKED = 3  # of a list's options, at most
FIRST = (
    'Which is it?',
    'Choose one.',
    'Which of these is right?',
    'Which colour is it?',
    'One of these:',
)
NAMED = ('It is {option}.', 'Take {option}.', '{option}?', 'And {option}?', 'I mean {option}.')


def with_options(
    rng: np.random.Generator, question: str, right: str, others: Sequence[str]
) -> tuple[str, str]:
    """The question with lettered options to choose from, and the right one's letter.

    Args:
        rng: the only source of randomness.
        question: as asked plainly.
        right: the right option.
        others: the wrong ones.
    """
    options = rng.permutation([right, *others]).tolist()
    return lettered(question, options), LETTERS[options.index(right)]


def told(question: str, letter: str) -> str:
    """A thought that says a question's options again, `red: A; blue: B. It is blue: B.`, and takes one.

    A policy that copies looks for what stands behind a word, and a letter stands before its option.

    Args:
        question: with its options.
        letter: of the one that is taken.
    """
    options = options_of(question)
    said = '; '.join(f'{option}: {a}' for a, option in zip(LETTERS, options))
    return f'{said}. It is {options[LETTERS.index(letter)]}: {letter}.'


def options_of(question: str) -> list[str]:
    """Options of a question; empty where it has none."""
    return re.findall(r'^[A-F]\. (.*)$', question, re.MULTILINE)


class OptionDialogues:
    """Dialogues about lists of lettered options, of which one after another is named.

    Args:
        pages: where the words of tools come from.
        words: draws an option of any words or numbers.
    """

    def __init__(self, pages: Pages, words: Callable[[np.random.Generator], str]):
        self.pages, self.words = pages, words

    def __call__(self, rng: np.random.Generator, tokens: int) -> Example:
        """An example of one dialogue, whatever `tokens` it is to have."""
        prompt = ToolPrompt.draw(rng, self.pages.words, ('string',), 0)
        asked, turns = [], []
        for _ in range(LISTS):
            options = self._options(rng)
            first = lettered(pick(rng, FIRST), options)
            chosen = rng.permutation(len(options))[:ASKED]
            for i, place in enumerate(chosen):
                option = options[place]
                name = pick(rng, NAMED).format(option=option)
                asked.append(first if i == 0 else name)
                thought = told(first, LETTERS[place])
                chosen_one = thought[thought.rindex(f'It is {option}: ') :]
                turn = answer(thought if i == 0 else chosen_one, LETTERS[place])
                # Which of them is meant is said by nothing at first.
                turns.append(Turn(turn, skipped=f'It is {option}' if i == 0 else ''))
        followed = [turn._replace(after=(following,)) for turn, following in zip(turns, asked[1:])]
        dialogue = Dialogue(asked[0], [*followed, turns[-1]])
        return Example(prompt.system(), None, '', [], dialogues=[dialogue])

    def _options(self, rng: np.random.Generator) -> list[str]:
        """Different ones, colours or anything."""
        count = int(rng.choice([3, 4, 5, 6], p=[0.15, 0.6, 0.15, 0.1]))
        if rng.random() < 0.5:
            return rng.permutation(NAMES)[:count].tolist()
        found: list[str] = []
        while len(found) < count:
            word = self.words(rng)
            if not any(word in other or other in word for other in found):
                found.append(word)
        return found
