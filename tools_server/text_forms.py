"""Text from anywhere in one form, in time that grows with its length whatever is in it."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

MOST_MARKS = 30  # on one letter, as in Unicode's Stream-Safe Text Format; no language needs as many
MOST_TITLE_CHARS = 300
_LAST_MARK = 0x1FFFF
_HALF = re.compile('[\ud800-\udfff]')


def _ranges(codes: list[int]) -> str:
    """Ascending code points as the inside of a class: ranges are matched faster than signs."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return ''.join(f'\\U{first:08x}-\\U{last:08x}' for first, last in ranges)


def _comes_apart_into_marks(letter: str) -> bool:
    if not unicodedata.combining(letter) and not unicodedata.decomposition(letter):
        return False
    return all(map(unicodedata.combining, unicodedata.normalize('NFKD', letter)))


# Both classes are made once, before the first call: a dozen threads that each made them would hold
# up the rest.
_PILE = re.compile(
    f'[{_ranges([code for code in range(0x300, _LAST_MARK) if _comes_apart_into_marks(chr(code))])}]'
    f'{{{MOST_MARKS + 1},}}'
)
_UNSEEN = [
    code
    for code in (*range(_LAST_MARK), *range(0xE0000, 0xE1000))  # and the two planes of private use
    if unicodedata.category(chr(code)) in ('Cc', 'Cf', 'Co', 'Cs')
]
_INVISIBLE = re.compile(f'[{_ranges(_UNSEEN)}\\U000f0000-\\U0010ffff]+')


def composed(text: str) -> str:
    """The text in composed form (NFC), so that é is one sign however it was written.

    Of a longer run of combining marks only the first 30 are kept: sorting them takes time that
    grows with the square of their number. Half a UTF-16 pair, which is no character, becomes a
    question mark.
    """
    return unicodedata.normalize('NFC', without_piles(_HALF.sub('?', text)))


def without_piles(text: str) -> str:
    """The text with at most 30 combining marks in a row; after that normalising it is fast."""
    return text if text.isascii() else _PILE.sub(lambda match: match.group()[:MOST_MARKS], text)


def as_text(value: Any) -> str:
    """Text of a field of another service: '' for null and objects; a list's members in a row."""
    if isinstance(value, list):
        return ' '.join(
            filter(
                None, (as_text(member) for member in value[:100] if not isinstance(member, list))
            )
        )
    return (
        str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ''
    )


def as_title(value: Any) -> str:
    """Title of a field that another service sent, on one line.

    One of more than 300 characters is cut: it would take the place of the texts.
    """
    title = ' '.join(as_text(value)[: 4 * MOST_TITLE_CHARS].split())
    return title if len(title) <= MOST_TITLE_CHARS else title[: MOST_TITLE_CHARS - 1].rstrip() + '…'


def without_invisible(text: str) -> str:
    """The text without control, format and private-use characters, and halves of UTF-16 pairs."""
    return text if text.isascii() and text.isprintable() else _INVISIBLE.sub('', text)
