"""Shortens a text to the sentences or fields that share words with a query."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

# A unit ends after sentence punctuation, after the semicolon between two fields, or at a line's
# end. Chinese and Japanese signs end one without a blank after them, and take the quotation marks
# that they close along.
_UNIT = re.compile(
    r'[^.;!?\n。！？；｡]*(?:[.;!?](?!\s|$)[^.;!?\n。！？；｡]*)*(?:[.;!?\n]|[。！？；｡]+[」』）”’"\')]*)?\s*'
)
CUT = '…'
# What is looked at of a text: time must not grow with what someone sends. An article has a tenth of
# that.
MOST_CHARS = 200_000
MOST_UNITS = 4_000
MOST_WORDS = 256  # of a query


def snippet(
    text: str,
    query: str,
    max_chars: int,
    words_of: Callable[[str], list[str]],
    most_units: int | None = None,
) -> str:
    """The parts of a text nearest to a query, in their order, '…' standing for what is left out.

    Args:
        text: the whole text; returned unchanged when short enough in both respects. Of a very long
            one the beginning is looked at.
        query: what is asked.
        max_chars: greatest length of the result in characters, '…' included.
        words_of: splits a text into words in the form in which they are compared.
        most_units: greatest number of sentences or fields; None: as many as there is room for.
    """
    text = text.strip()
    if len(text) <= max_chars and most_units is None:
        return text
    units, complete = _units(text)
    most = len(units) if most_units is None else most_units
    if len(text) <= max_chars and len(units) <= most and complete:
        return text
    wanted = set(words_of(query)[:MOST_WORDS])
    present = [wanted.intersection(words_of(unit)) for unit in units]
    commonness = Counter(itertools.chain.from_iterable(present))
    # A word that few units have says more; the text's beginning, which names the subject, wins
    # ties.
    worth = [sum(1 / commonness[word] for word in words) for words in present]
    chosen = _Chosen(units, complete)
    for index in sorted(range(len(units)), key=lambda i: (-worth[i], i)):
        if (worth[index] == 0 and len(chosen)) or len(chosen) == most:
            break
        if chosen.length_with(index) <= max_chars:
            chosen.add(index)
        elif not len(chosen):
            return _window(units[index].strip(), wanted, max_chars, index > 0, words_of)
    for index in range(len(units)):  # room that is left goes to what follows from the beginning
        if len(chosen) == most:
            break
        if index not in chosen and chosen.length_with(index) <= max_chars:
            chosen.add(index)
    return chosen.text()


def _units(text: str) -> tuple[list[str], bool]:
    """The units that are looked at, each with the blanks after it, and whether they are all."""
    found = (match.group() for match in _UNIT.finditer(text, 0, MOST_CHARS))
    units = list(itertools.islice((unit for unit in found if unit.strip()), MOST_UNITS + 1))
    return units[:MOST_UNITS], len(units) <= MOST_UNITS and len(text) <= MOST_CHARS


class _Chosen:
    """Units that are kept, and the length of the text that they make."""

    def __init__(self, units: list[str], complete: bool):
        # Between units stands the blank that was there; none after a Chinese full stop.
        self._shown = [unit.rstrip() + ' ' * unit[-1].isspace() for unit in units]
        self._last = len(units) - 1 if complete else len(units)
        self._chosen: set[int] = set()
        self._length = 0  # of the units and of the marks before them

    def __len__(self) -> int:
        return len(self._chosen)

    def __contains__(self, index: int) -> bool:
        return index in self._chosen

    def length_with(self, index: int) -> int:
        """Length of the text if a unit were added."""
        end = '' if self._last == index or self._last in self._chosen else CUT
        return self._length + self._growth(index) + len(end)

    def add(self, index: int) -> None:
        """Keeps a unit that was not kept."""
        self._length += self._growth(index)
        self._chosen.add(index)

    def _growth(self, index: int) -> int:
        """By how much a unit and the marks around it make the text longer."""
        own = len(self._shown[index])
        before = 0 if index == 0 or index - 1 in self._chosen else 1
        closed = 1 if index + 1 in self._chosen else 0  # the mark before the next unit goes
        return own + (before - closed) * len(f'{CUT} ')

    def text(self) -> str:
        """The units in their order, with marks for what lies between."""
        pieces: list[str] = []
        last = -1
        for index in sorted(self._chosen):
            pieces += ['' if index == last + 1 else f'{CUT} ', self._shown[index]]
            last = index
        return ''.join(pieces).strip() if last == self._last else ''.join(pieces) + CUT


def _window(
    unit: str,
    wanted: set[str],
    max_chars: int,
    cut_before: bool,
    words_of: Callable[[str], list[str]],
) -> str:
    """A stretch of one long unit around its first wanted word, cut between words."""
    tokens = unit.split()
    first = 0
    if wanted.intersection(words_of(unit)):
        first = next(
            (i for i, token in enumerate(tokens) if wanted.intersection(words_of(token))), 0
        )
    start = end = first
    length = 4  # two cut marks and their spaces
    while end < len(tokens) and length + len(tokens[end]) + 1 <= max_chars:
        length += len(tokens[end]) + 1
        end += 1
        if end - start > 12 and start > 0 and length + len(tokens[start - 1]) + 1 <= max_chars:
            start -= 1
            length += len(tokens[start]) + 1
    if end == start:  # a single word longer than the limit, or a text without blanks
        return _inside(
            tokens[start], wanted, max_chars, start > 0 or cut_before, start + 1 < len(tokens)
        )
    before = f'{CUT} ' if start > 0 or cut_before else ''
    after = '' if end == len(tokens) else f' {CUT}'
    return before + ' '.join(tokens[start:end]) + after


def _inside(token: str, wanted: set[str], max_chars: int, cut_before: bool, cut_after: bool) -> str:
    """A stretch of one long word that begins near the first wanted word in it, as Chinese has them."""
    places = [place for word in wanted if (place := token.find(word)) >= 0]
    start = max(0, min(places, default=0) - max_chars // 4)
    start = max(0, min(start, len(token) - max_chars + 2))
    before = CUT if start > 0 or cut_before else ''
    room = max_chars - len(before)
    if len(token) - start <= room and not cut_after:
        return before + token[start:]
    return before + token[start : start + room - 1] + CUT
