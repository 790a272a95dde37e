"""Answers as words: case, punctuation and a leading article do not count; what tells two answers
apart does.

'C#' is not 'C', 'Vitamin A' is not 'Vitamin', '12:30' is not '1230', 'A-' is not 'A'.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from tools_server.answer_matching.characters import clean, fold, plain_letters

ARTICLES = ('a', 'an', 'the')
SEPARATOR = ','  # a token between the items of a list

_ORDINALS = {
    word: f'{number}{ {1: "st", 2: "nd", 3: "rd"}.get(number, "th") }'
    for number, word in enumerate(
        'first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth '
        'fifteenth sixteenth seventeenth eighteenth nineteenth twentieth'.split(),
        1,
    )
}
# J.R.R., J. K. and U.S.A., also without the last dot where the letters are close: one word each.
_INITIALS = re.compile(
    r'(?<!\w)[^\W\d_](?:\. ?[^\W\d_](?!\w))+\.|(?<!\w)[^\W\d_](?:\.[^\W\d_])+(?!\w)'
)
_SPACED = re.compile(r'(?<=\d) ([-/:]) (?=\d)')  # 1990 – 1995
_LOOSE_SIGN = re.compile(r'- \d')  # a sign or a bullet
_RANGE = re.compile(r'(?<=\d) to (?=\d)')
_TOKEN = re.compile(
    r"""
    (?:(?<![\w)\]"'.])-(?=\.?\d))? (?:(?<!\w)\.(?=\d))?      # a sign, and the point of .5
    \w+ (?:(?:(?<=\d)[.,:/-](?=\d)|(?<=\w)\^-?(?=\w)|(?<=\w)'(?=[^\W\d]))\w+)*
    # C++, A-, 5!, 5'
    (?:[+#*]+(?!\w)|(?<=\b[^\W\d])-(?!\w)|(?<=\b[^\W\d]{2})-(?!\w)|(?<=\d)!|(?<=\d)['"](?!\w))?
    | [,;、،，；]
    | [^\w\s]
    """,
    re.VERBOSE,
)
_GROUPED = re.compile(r'(?<![\d,.])(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d\d)+,\d{3})(?![\d,])')
_ARTICLE = re.compile(r'(?:[Tt]he|THE|an?|An?(?= [a-z])) +(?=[^\W\d_]{2}|[Tt]he )')
# After a capital A these are marks, keys and blood groups rather than things: 'A minor', 'A
# positive'.
_NAMED_A = re.compile(
    r'A (?:minor|major|flat|sharp|positive|negative|plus|minus|levels?|side|team|star|class|series)\b'
)


class Reading(NamedTuple):
    """A text as words.

    `full`: all of them; `bare`: without a leading article; `items`: those of a list, each without
    its article.
    """

    full: tuple[str, ...]
    bare: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]


def normalise(text: str) -> str:
    """The words of `text` between single spaces; articles stay."""
    return ' '.join(_joined(tokens(clean(text))))


def without_article(text: str) -> str:
    """Cleaned text without an article at its beginning, unless nothing but articles would be left."""
    match = None if _NAMED_A.match(text) else _ARTICLE.match(text)
    rest = text[match.end() :] if match else text
    return text if fold(rest) in ARTICLES else rest


def same_words(one: str, other: str) -> bool:
    """Whether two cleaned texts say the same words in the same order, or the same list."""
    a, b = read(one), read(other)
    if not a.full or not b.full:  # nothing but punctuation, which then is the answer
        return not a.full and not b.full and bool(one) and one == other
    if a.full == b.full or _alike(a.bare, b.bare):
        return True
    return 1 < len(a.items) == len(b.items) and all(map(_alike, a.items, b.items))


@lru_cache(maxsize=512)
def read(text: str) -> Reading:
    """A cleaned text as `Reading`."""
    found = tokens(text)
    items: list[list[str]] = [[]]
    for token in found:
        if token in (SEPARATOR, 'and'):
            items.append([])
        else:
            items[-1].append(token)
    bare = tuple(_joined(tokens(without_article(text))))
    return Reading(tuple(_joined(found)), bare, tuple(tuple(_item(item)) for item in items if item))


def _item(words: list[str]) -> list[str]:
    is_article = (
        words[0] in ARTICLES and len(words) > 1 and len(words[1]) > 1 and words[1].isalpha()
    )
    return words[1:] if is_article else words


def tokens(text: str) -> list[str]:
    """Words, numbers and meaningful signs of a cleaned text, folded, and `SEPARATOR` between items."""
    text = fold(text)
    text = _INITIALS.sub(lambda match: re.sub(r'[. ]', '', match.group()) + ' ', text)
    text = _RANGE.sub('-', _SPACED.sub(r'\1', text))
    # Marks of other scripts are no letters for `re`; 'x' stands for them while words are cut.
    shape = (
        text
        if text.isascii()
        else ''.join('x' if unicodedata.category(c)[0] == 'M' else c for c in text)
    )
    found: list[str] = []
    opened = 0  # quotation marks so far; one after a digit that closes none means inches
    for match in _TOKEN.finditer(shape):
        token = text[match.start() : match.end()]
        if len(token) == 1 and not token.isalnum():
            opened += token == '"'
            if token in ',;、،，；':
                found.append(SEPARATOR)
            elif token == '&':
                found.append('and')
            elif (
                token in '#%@*\\'
                or unicodedata.category(token)[0] == 'S'
                or _LOOSE_SIGN.match(text, match.start())
            ):
                found.append(token)
            continue
        if token[-1] == '"' and opened % 2:
            token, opened = token[:-1], opened + 1
        found += _numerals(token if token[-1] == "'" else token.replace("'", ''))
    return found


def _numerals(token: str) -> list[str]:
    """A token with its number in one form: 1200 for 1,200; 3 , 5 for 3,5; 0.5 for .5."""
    if token in _ORDINALS:
        return [_ORDINALS[token]]
    if token.startswith(('.', '-.')):
        token = token.replace('.', '0.', 1)
    if ',' not in token:
        return [token]
    token = _GROUPED.sub(lambda match: match.group().replace(',', ''), token)
    return [piece for part in token.split(',') for piece in (part, SEPARATOR)][:-1]


def _joined(found: list[str]) -> list[str]:
    """Tokens without separators, except those between two numbers: 3, 5 is not 35."""
    kept = []
    for i, token in enumerate(found):
        if token != SEPARATOR:
            kept.append(token)
        elif kept and kept[-1] != SEPARATOR and kept[-1][-1].isdigit() and i + 1 < len(found):
            # The sign of '3, - 5' is no range of 3 and 5.
            after = i + 1 + (found[i + 1] in ('-', 'to'))
            if after < len(found) and found[after][0].isdigit():
                kept.append(token)
    return _with_ranges(kept)


def _with_ranges(found: list[str]) -> list[str]:
    """Tokens with 5 - 6 and 5 to 6 as 5-6 also where other signs stood between: '5- 6', '5) to 6'."""
    kept: list[list[str]] = []  # each the pieces of one token
    for token in found:
        if (
            len(kept) > 1
            and kept[-1] in (['-'], ['to'])
            and token[0].isdigit()
            and kept[-2][-1][-1].isdigit()
        ):
            kept.pop()
            kept[-1] += ['-', token]
        else:
            kept.append([token])
    return list(map(''.join, kept))


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the words are equal, or one side was typed without the accents of the other."""
    if len(one) != len(other):
        return False
    if one == other:
        return True
    plain = [tuple(map(plain_letters, words)) for words in (one, other)]
    if plain[0] != plain[1] or (plain[0] != one and plain[1] != other):
        return False
    return all(a == b or len(a) > 2 for a, b in zip(one, other))
