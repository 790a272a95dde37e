"""Shortens a text to the sentences or fields that share words with a query."""

from __future__ import annotations

import re
from collections.abc import Callable

# A unit ends after sentence punctuation, after the semicolon between two fields, or at a line's end.
_UNIT = re.compile(r'[^.;!?\n]*(?:[.;!?](?!\s|$)[^.;!?\n]*)*[.;!?\n]?\s*')
CUT = '…'


def snippet(
    text: str,
    query: str,
    max_chars: int,
    words_of: Callable[[str], list[str]],
    most_units: int | None = None,
) -> str:
    """The parts of a text nearest to a query, in their order, '…' standing for what is left out.

    Args:
        text: the whole text; returned unchanged when short enough in both respects.
        query: what is asked.
        max_chars: greatest length of the result in characters, '…' included.
        words_of: splits a text into words in the form in which they are compared.
        most_units: greatest number of sentences or fields; None: as many as there is room for.
    """
    text = text.strip()
    if len(text) <= max_chars and most_units is None:
        return text
    units = [match.group() for match in _UNIT.finditer(text) if match.group().strip()]
    most = len(units) if most_units is None else most_units
    if len(text) <= max_chars and len(units) <= most:
        return text
    wanted = set(words_of(query))
    present = [wanted & set(words_of(unit)) for unit in units]
    commonness = {word: sum(word in words for words in present) for word in wanted}
    # A word that few units have says more; the text's beginning, which names the subject, wins ties.
    worth = [sum(1 / commonness[word] for word in words) for words in present]
    chosen: set[int] = set()
    for index in sorted(range(len(units)), key=lambda i: (-worth[i], i)):
        if (worth[index] == 0 and chosen) or len(chosen) == most:
            break
        if len(_joined(units, chosen | {index})) <= max_chars:
            chosen.add(index)
        elif not chosen:
            return _window(units[index].strip(), wanted, max_chars, index > 0, words_of)
    for index in range(len(units)):  # room that is left goes to what follows from the beginning
        if len(chosen) < most and len(_joined(units, chosen | {index})) <= max_chars:
            chosen.add(index)
    return _joined(units, chosen)


def _joined(units: list[str], chosen: set[int]) -> str:
    pieces: list[str] = []
    last = -1
    for index in sorted(chosen):
        if index != last + 1:
            pieces.append(f'{CUT} ')
        pieces.append(units[index].rstrip() + ' ')
        last = index
    if last != len(units) - 1:
        pieces.append(CUT)
    return ''.join(pieces).strip()


def _window(
    unit: str, wanted: set[str], max_chars: int, cut_before: bool, words_of: Callable[[str], list[str]]
) -> str:
    """A stretch of one long unit around its first wanted word, cut between words."""
    tokens = unit.split()
    first = next((i for i, token in enumerate(tokens) if wanted & set(words_of(token))), 0)
    start = end = first
    length = 4  # two cut marks and their spaces
    while end < len(tokens) and length + len(tokens[end]) + 1 <= max_chars:
        length += len(tokens[end]) + 1
        end += 1
        if end - start > 12 and start > 0 and length + len(tokens[start - 1]) + 1 <= max_chars:
            start -= 1
            length += len(tokens[start]) + 1
    if end == start:  # a single word longer than the limit
        return tokens[start][: max_chars - 1] + CUT
    before = f'{CUT} ' if start > 0 or cut_before else ''
    after = '' if end == len(tokens) else f' {CUT}'
    return before + ' '.join(tokens[start:end]) + after
