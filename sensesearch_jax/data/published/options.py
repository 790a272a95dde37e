"""Options of multiple-choice questions: found in a question's text, freed of their letters, put in another order."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import ascii_uppercase

from sensesearch_jax.data.plain_format import BadRecord

# '(A) ', 'A. ', 'A) ' or 'A: ', at the start of a line or behind a space.
_MARK = re.compile(r'(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):])[ \t]+')
_OWN_MARK = re.compile(r'^\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*')


def split_options(text: str) -> tuple[str, list[str]]:
    """A question and its options, from a text that holds both; no options where it holds none.

    The options are the last run of marks A, B, … in it. What follows the last option's line, such as
    'Answer with the letter', belongs to neither.
    """
    marks = [(m.start(), m.end(), m.group(1) or m.group(2)) for m in _MARK.finditer(text)]
    for first in reversed([n for n, mark in enumerate(marks) if mark[2] == 'A']):
        run = marks[first:]
        length = next((n for n, mark in enumerate(run) if mark[2] != ascii_uppercase[n]), len(run))
        if length > 1:
            ends = [mark[0] for mark in run[1:length]]
            last = text.find('\n', run[length - 1][1])
            ends.append(last if last >= 0 else len(text))
            options = [text[run[n][1] : end].strip() for n, end in enumerate(ends)]
            return text[: run[0][0]].strip(), options
    return text.strip(), []


def without_marks(options: Sequence[str]) -> list[str]:
    """Options as texts, without the '(A) ' that each may begin with.

    Raises:
        BadRecord: a mark is there, but not the option's own.
    """
    texts = []
    for letter, option in zip(ascii_uppercase, options, strict=False):
        found = _OWN_MARK.match(option)
        if found and (found.group(1) or found.group(2)) != letter:
            raise BadRecord(
                'wrong options', f'option {letter} begins with {found.group().strip()!r}'
            )
        texts.append(option[found.end() :] if found else option)
    return texts


def shuffled(options: Sequence[str], answer: str, seed: str) -> tuple[list[str], str, list[int]]:
    """Options in an order that depends on nothing but the seed.

    Args:
        options: in the published order.
        answer: the right one's letter there.
        seed: such as the name of the set and the question's id.

    Returns:
        The options, the right one's letter among them, and for each its published place from 0.

    Raises:
        BadRecord: the answer is no letter of the options.
    """
    place = letter_place(answer, len(options))
    order = list(range(len(options)))
    random.Random(seed).shuffle(order)
    return [options[n] for n in order], ascii_uppercase[order.index(place)], order


def letter_place(answer: str, count: int) -> int:
    """The place of an option, from 0, by its letter: 'B', '(B)' or 'B.'.

    Args:
        answer: the letter.
        count: of the options.

    Raises:
        BadRecord: it names none of them.
    """
    letter = str(answer).strip().strip('().').upper()
    place = ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= place < count:
        raise BadRecord(
            'no right answer', f'the answer {answer!r} names none of its {count} options'
        )
    return place
