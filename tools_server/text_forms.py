"""Text from anywhere in one form, in time that grows with its length whatever is in it."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

MOST_MARKS = 30  # on one letter, as in Unicode's Stream-Safe Text Format; no language needs as many
MOST_TITLE_CHARS = 300
_LAST_MARK = 0x1FFFF
_HALF = re.compile('[\ud800-\udfff]')


def composed(text: str) -> str:
    """The text in composed form (NFC), so that é is one sign however it was written.

    Of a longer run of combining marks only the first 30 are kept: sorting them takes time that grows with the
    square of their number. Half a UTF-16 pair, which is no character, becomes a question mark.
    """
    return unicodedata.normalize('NFC', without_piles(_HALF.sub('?', text)))


def without_piles(text: str) -> str:
    """The text with at most 30 combining marks in a row; after that normalising it is fast."""
    return text if text.isascii() else _piles().sub(lambda match: match.group()[:MOST_MARKS], text)


def as_text(value: Any) -> str:
    """What another service sent where a text should be: '' for null and for objects; a list's members in a row."""
    if isinstance(value, list):
        return ' '.join(filter(None, (as_text(member) for member in value[:100] if not isinstance(member, list))))
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ''


def as_title(value: Any) -> str:
    """What another service sent where a title should be, on one line.

    One of more than 300 characters is cut: it would take the place of the texts.
    """
    title = ' '.join(as_text(value)[: 4 * MOST_TITLE_CHARS].split())
    return title if len(title) <= MOST_TITLE_CHARS else title[: MOST_TITLE_CHARS - 1].rstrip() + '…'


def without_invisible(text: str) -> str:
    """The text without control and format characters, those of private use, and halves of UTF-16 pairs."""
    return text if text.isascii() and text.isprintable() else _invisible().sub('', text)


@functools.cache
def _piles() -> re.Pattern[str]:
    """A run of too many marks, those included that come apart into marks only."""
    marks = [
        code
        for code in range(0x300, _LAST_MARK)
        if all(unicodedata.combining(part) for part in unicodedata.normalize('NFKD', chr(code)))
    ]
    return re.compile(f'[{_ranges(marks)}]{{{MOST_MARKS + 1},}}')


@functools.cache
def _invisible() -> re.Pattern[str]:
    codes = [*range(_LAST_MARK), *range(0xE0000, 0xE1000)]  # and the two planes of private use
    found = [code for code in codes if unicodedata.category(chr(code)) in ('Cc', 'Cf', 'Co', 'Cs')]
    return re.compile(f'[{_ranges(found)}\U000f0000-\U0010ffff]+')


def _ranges(codes: list[int]) -> str:
    """Ascending code points as the inside of a class, in ranges, which are matched faster than single signs."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return ''.join(f'\\U{first:08x}-\\U{last:08x}' for first, last in ranges)
