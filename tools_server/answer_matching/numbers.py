"""Answers as quantities: equal by value, with sign and unit; nothing is converted, rounded or
guessed.

'1,200' is 1200 and '.5' is 0.5; '1,2', '12:30', '29.100.115' and '007' are no numbers, and '3,5' is
one only with a unit behind it. Two quantities are compared as such to the end: '5 mW' is not '5
MW', though the letters agree.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from tools_server.answer_matching.units import BEFORE, unit

MOST_DIGITS = 40
MOST_EXPONENT = 60


class Quantity(NamedTuple):
    """A value with its unit ('' for none).

    `high` is the end of a range, `ratio` the fraction that was written; `unsure` means written like
    1.200, which is 1200 in half of the world.
    """

    value: Fraction
    unit: str
    high: Fraction | None = None
    ratio: tuple[int, int] | None = None
    unsure: bool = False


# A number's forms. The first group of grouped digits does not begin with 0, nor does a whole number
# but 0.
_FORMS = (
    (re.compile(r'[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?![\d,])'), ','),  # 1,234,567.8
    (re.compile(r'[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?(?![\d,])'), ','),  # 12,34,567
    (re.compile(r"[1-9]\d{0,2}(?:'\d{3})+(?:\.\d+)?(?![\d'])"), "'"),  # 1'234'567
    (re.compile(r'[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?![\d,])(?! \d)'), ' '),  # 1 234 567
    (re.compile(r'[1-9]\d{0,2}(?:\.\d{3})+,\d+(?![\d,.])'), '.'),  # 1.234.567,8
    (re.compile(r'(?:(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)(?![\d,]|\.\d)'), ''),  # 1234.5
    (re.compile(r'(?:0|[1-9]\d*),\d+(?![\d,]|\.\d)'), 'comma'),  # 3,5
)
_POWER = re.compile(r' ?(?:[x×*·] ?)?(10)\^([-+]?\d{1,3})(?!\d)|[eE]([-+]?\d{1,3})(?![\w])')
_THOUSANDTHS = re.compile(r'[1-9]\d{0,2}\.\d{3}(?!\d|[.,]\d)')
_RATIO = re.compile(r'(?:(\d{1,6}) )?(\d{1,4})/([1-9]\d{0,3})(?![\d/])')
_SIGN = re.compile(r'(?:(-)(?! )|(minus|negative) |(\+))', re.IGNORECASE)
_SCALES = {
    'hundred': 10**2,
    'thousand': 10**3,
    'lakh': 10**5,
    'lakhs': 10**5,
    'million': 10**6,
    'millions': 10**6,
    'crore': 10**7,
    'crores': 10**7,
    'billion': 10**9,
    'billions': 10**9,
    'bn': 10**9,
    'trillion': 10**12,
    'trillions': 10**12,
}
_MONEY_SCALES = {'k': 10**3, 'm': 10**6, 'mn': 10**6, 'b': 10**9}  # $5m is money, 5m are metres
_SCALE = re.compile(r' ?([a-z]+)(?![a-z/^])', re.IGNORECASE)
_RANGE = re.compile(r'(.*\d[^-\d]{0,30}?)(?: ?- ?| to )(\d.*)')
_BETWEEN = re.compile(r'(?:from|between) (?=\d)', re.IGNORECASE)

_ONES = {
    word: number
    for number, word in enumerate(
        'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen '
        'seventeen eighteen nineteen'.split()
    )
}
_TENS = dict(
    zip('twenty thirty forty fifty sixty seventy eighty ninety'.split(), range(20, 100, 10))
)
_WORD_SCALES = {'thousand': 10**3, 'million': 10**6, 'billion': 10**9, 'trillion': 10**12}

# Asked for one of these, an answer is a name made of digits: version 3.10 is not 3.1.
_NAME_OF_DIGITS = re.compile(
    r'\b(?:versions?|releases?|accession|serial|models?|codes?|registration|flight|phone|telephone|isbn|issn|zip|'
    r'postcode|postal|plate|route|section|chapter|catalogue?|inventory|identifier|id)\b',
    re.IGNORECASE,
)
_ASKED_UNIT = re.compile(r'\b(?:how many|in) ((?:square |cubic |degrees )?[a-z°%]+)', re.IGNORECASE)


def compare(one: str, other: str, question: str) -> bool | None:
    """Whether two cleaned texts are the same quantity.

    Args:
        one: cleaned.
        other: cleaned; the order of the two does not matter.
        question: as it was asked; it may name the unit that one side leaves out.

    Returns:
        None where they are not both quantities.
    """
    a, b = read(one), read(other)
    if a is None or b is None or _NAME_OF_DIGITS.search(question):
        return None
    if a.ratio and b.ratio and a.ratio != b.ratio:  # 2/4 is another time than 1/2
        return False
    if (a.value, a.high, a.unsure) != (b.value, b.high, b.unsure):
        return False
    if a.unit == b.unit:
        return True
    asked = {unit(match.group(1)) for match in _ASKED_UNIT.finditer(question)}
    return '' in (a.unit, b.unit) and (a.unit or b.unit) in asked


@lru_cache(maxsize=512)
def read(text: str) -> Quantity | None:
    """The quantity that a cleaned text is, with nothing beside it; a range of two is one."""
    if len(text) > 100:
        return None
    text = text.rstrip('.,; ')
    while len(text) > 2 and text[0] + text[-1] in ('""', "''", '()', '[]'):
        text = text[1:-1].strip()
    found = _single(text)
    if found is not None:
        return found
    match = _RANGE.fullmatch(_BETWEEN.sub('', text))
    if match is None:
        return None
    low, high = _single(match.group(1)), _single(match.group(2))
    if low is None or high is None or low.ratio or high.ratio or low.unit not in ('', high.unit):
        return None
    return Quantity(low.value, high.unit, high.value)


def _single(text: str) -> Quantity | None:
    sign, text = _sign(text)
    money = next((symbol for symbol in BEFORE if text.startswith(symbol)), '')
    if money:
        inner, text = _sign(text[len(money) :].lstrip())
        sign *= inner
    ratio = _RATIO.match(text)
    number = None if ratio else _number(text, bool(money))
    if ratio:
        whole, top, bottom = int(ratio.group(1) or 0), int(ratio.group(2)), int(ratio.group(3))
        if not top < bottom:  # 24/7, 10/5: hardly a number
            return None
        value, rest = whole + Fraction(top, bottom), text[ratio.end() :]
    elif number:
        value, rest = number
    else:
        return _from_words(text, sign)
    scale = _SCALE.match(rest)
    scales = _SCALES | _MONEY_SCALES if money else _SCALES
    if scale and scale.group(1).casefold() in scales:
        value, rest = value * scales[scale.group(1).casefold()], rest[scale.end() :]
    named = unit(rest)
    if named is None or (money and named not in ('', unit(money))):
        return None
    written = (top, bottom) if ratio and not whole else None
    return Quantity(
        sign * value, unit(money) or named, ratio=written, unsure=bool(_THOUSANDTHS.match(text))
    )


def _sign(text: str) -> tuple[int, str]:
    match = _SIGN.match(text)
    if match is None:
        return 1, text
    return (1 if match.group(3) else -1), text[match.end() :]


def _number(text: str, money: bool) -> tuple[Fraction, str] | None:
    """The number at the beginning of `text`, and what follows it."""
    power = _POWER.match(text)
    if power and power.group(1):
        return _times_power(Fraction(1), power, text)
    for form, mark in _FORMS:
        match = form.match(text)
        if match is None:
            continue
        digits, rest = match.group(), text[match.end() :]
        if len(digits) > MOST_DIGITS:
            return None
        if mark == 'comma':
            if not money and not rest.strip():
                return None
            digits = digits.replace(',', '.')
        elif mark == '.':
            digits = digits.replace('.', '').replace(',', '.')
        elif mark:
            digits = digits.replace(mark, '').replace(',', '.')
        value, power = Fraction(digits), _POWER.match(rest)
        return _times_power(value, power, rest) if power else (value, rest)
    return None


def _times_power(value: Fraction, power: re.Match[str], text: str) -> tuple[Fraction, str] | None:
    exponent = int(power.group(2) or power.group(3))
    if abs(exponent) > MOST_EXPONENT:
        return None
    return value * Fraction(10) ** exponent, text[power.end() :]


def _from_words(text: str, sign: int) -> Quantity | None:
    """'two hundred and five km', 'twenty-one', 'five million'."""
    words = text.casefold().replace('-', ' ').split()
    total, part, room, used = 0, None, 1000, 0  # `room`: the next word must be below it
    scale_limit = 10**15
    for i, word in enumerate(words):
        if word == 'and' and part is not None and part >= 100 and i + 1 < len(words):
            if words[i + 1] in _ONES or words[i + 1] in _TENS:
                continue
            break
        if word in _ONES and _ONES[word] < room and not (part is not None and _ONES[word] == 0):
            part, room = (part or 0) + _ONES[word], 0
        elif word in _TENS and _TENS[word] < room:
            part, room = (part or 0) + _TENS[word], 10
        elif word == 'hundred' and part is not None and 0 < part < 10:
            part, room = part * 100, 100
        elif word in _WORD_SCALES and part and _WORD_SCALES[word] < scale_limit:
            scale_limit = _WORD_SCALES[word]
            total, part, room = total + part * scale_limit, None, 1000
        else:
            break
        used = i + 1
    if used == 0:
        return None
    named = unit(' '.join(text.replace('-', ' ').split()[used:]))
    return None if named is None else Quantity(Fraction(sign * (total + (part or 0))), named)
