"""One way of writing for what Unicode writes in several: widths, dashes, quotes, digits, invisible
characters.

NFKC alone would make 103 of 10³ and 112 of 1½; raised digits become 10^3 and fractions 1 1/2 here.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import groupby

# combining marks in a row, as in Unicode's stream-safe text; sorting them is quadratic
MOST_MARKS = 30
_RAISED_WORDS = {'st', 'nd', 'rd', 'th', 'e', 'er', 're', 'o', 'a'}  # of ordinals, as in 1ˢᵗ and Nº
_REPLACED = str.maketrans(
    dict.fromkeys('‐‑‒–—―−﹘﹣－', '-')
    | dict.fromkeys('‘’‚‛ʼʹ′`´＇', "'")
    | dict.fromkeys('“”„‟″〝〞＂«»', '"')
    | dict.fromkeys('⁄∕', '/')
    | dict.fromkeys('™®©℠', None)
)
# *word*, **word**, __word__: the marks go, the word stays. A* and 5*3*2 hold no pair around words.
_EMPHASIS = re.compile(r'(?<![\w*])(\*\*|\*|__|_)(?=[^\s*_])([^*_]*[^\s*_])\1(?![\w*])')


def clean(text: str) -> str:
    """`text` in NFKC with plain dashes, quotes and digits, without invisible characters and
    emphasis.

    Upper and lower case stay, for units differ by them. Raised digits are written after '^',
    lowered ones after a digit behind '_', fractions as 1/2 apart from what precedes them. Spaces
    are folded.
    """
    if not text.isascii():
        text = ''.join(_shown(text)).translate(_REPLACED)
        text = unicodedata.normalize('NFKC', text).translate(_REPLACED)
        text = ''.join(
            str(unicodedata.digit(c)) if c.isdecimal() and not c.isascii() else c for c in text
        )
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    return ' '.join(_EMPHASIS.sub(r'\2', ' '.join(text.split())).split())


def fold(text: str) -> str:
    """Cleaned text without upper and lower case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', text.casefold()).casefold())


@lru_cache(maxsize=4096)
def plain_letters(word: str) -> str:
    """A folded word without accents on Latin and Greek letters; other marks are letters."""
    if word.isascii():
        return word
    kept, base = [], ''
    for c in unicodedata.normalize('NFD', word):
        if (
            base
            and '\u0300' <= c <= '\u036f'
            and unicodedata.name(base, '').startswith(('LATIN', 'GREEK'))
        ):
            continue
        base = c
        kept.append(c)
    return unicodedata.normalize('NFC', ''.join(kept)).translate(_STROKES)


_STROKES = str.maketrans(
    {'ł': 'l', 'ø': 'o', 'đ': 'd', 'ı': 'i', 'ħ': 'h', 'æ': 'ae', 'œ': 'oe', 'ð': 'd', 'þ': 'th'}
)


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    category, tag = unicodedata.category(char), unicodedata.decomposition(char).partition(' ')[0]
    if category == 'Cf' or char == '\u034f' or '\ufe00' <= char <= '\ufe0f':
        return 'invisible'
    if unicodedata.combining(char):
        return 'mark'
    if tag == '<super>':
        return 'raised'
    if tag == '<sub>' and category == 'No':
        return 'lowered'
    return 'number' if category == 'No' and tag else 'plain'


def _shown(text: str):
    """Pieces of `text` as `clean` writes them before NFKC."""
    visible, last = (c for c in text if _kind(c) != 'invisible'), ''
    for kind, group in groupby(visible, _kind):
        piece = ''.join(group)
        if kind == 'mark':
            piece = piece[:MOST_MARKS]
        elif kind == 'raised':
            plain = unicodedata.normalize('NFKC', piece)
            if piece not in '™℠':  # they go
                piece = plain if plain.casefold() in _RAISED_WORDS else '^' + plain
        elif kind == 'lowered' and last.isdigit():
            piece = '_' + piece
        elif kind == 'number':  # ½ and ①, which must not run into a digit beside them
            piece = ''.join(f' {c} ' for c in piece)
        last = piece[-1:] or last
        yield piece
