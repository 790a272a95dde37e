"""Answers as dates: equal in every part that is given, or in the part that the question asks for.

'3 August 1960' is right for the year 1960 where a year is asked for. '29.100.115' and '1975.1.10'
are no dates but numbers of a catalogue; '3/8/1960' has two readings, so that only its year is sure.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import NamedTuple

MONTHS = (
    'january february march april may june july august september october november december'.split()
)
_MONTH = {name: number for number, month in enumerate(MONTHS, 1) for name in (month, month[:3])} | {
    'sept': 9
}
WEEKDAYS = 'monday tuesday wednesday thursday friday saturday sunday'.split()
_WEEKDAY = {name: number for number, day in enumerate(WEEKDAYS) for name in (day, day[:3])} | {
    'tues': 1,
    'wednes': 2,
    'thur': 3,
    'thurs': 3,
}


class Date(NamedTuple):
    """Parts of a date, None where it is silent; a year before Christ is negative, `weekday` 0 is
    Monday.

    `sure`: False where day and month may be the other way round; `bare`: a number alone, that may
    be no year.
    """

    year: int | None
    month: int | None
    day: int | None
    weekday: int | None
    sure: bool = True
    bare: bool = False


_YEAR_ASKED = re.compile(r'\byear\b(?!-old| old)', re.IGNORECASE)
_PERIOD_ASKED = re.compile(
    r'\b(?:(?:how (?:many|much|often|long|old))|(?:per|each|every|a) year)\b', re.IGNORECASE
)
_MONTH_ASKED = re.compile(r'\b(?:which|what|the) month\b|\b(?:day and|and) month\b', re.IGNORECASE)
_WEEKDAY_ASKED = re.compile(r'\b(?:day of the week|weekday)\b', re.IGNORECASE)
_DAY_ASKED = re.compile(r'\b(?:day of the month|day and month|month and day)\b', re.IGNORECASE)

_NAME = r'(?P<month>[a-z]{3,9})\.?'
_DAY = r'(?P<day>\d{1,2})(?:st|nd|rd|th)?'
_YEAR = r'(?P<year>\d{1,4})(?P<era> ?(?:b\.?c\.?e?\.?|a\.?d\.?|c\.?e\.?))?'
_FORMS = [
    re.compile(form)
    for form in (
        # 3rd of August, 1960
        rf'(?:the )?{_DAY}(?: of|\.)?[ -]{_NAME}(?:(?: |, |-|, of | of )(?:the year )?{_YEAR})?',
        rf'{_NAME} (?:the )?{_DAY}(?:,? {_YEAR})?',  # August 3, 1960
        rf'{_NAME}(?:,? (?:of )?{_YEAR})?',  # August 1960
        rf'{_YEAR},? {_NAME}(?: {_DAY})?',  # 1960 August 3
        r'(?P<year>\d{4})(?P<mark>[-/])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})',  # 1960-08-03
        r'(?P<year>\d{4})年(?:(?P<month>\d{1,2})月(?:(?P<day>\d{1,2})[日号])?)?',  # 1960年8月3日
        rf'(?:the )?(?:year )?(?:a\.?d\.? )?{_YEAR}',  # 1960, AD 79, 44 BC
    )
]
_NUMERIC = re.compile(r'(\d{1,2})([./-])(\d{1,2})\2(\d{4})')  # 24.5.1990, 5/24/1990
_BEFORE = re.compile(r'(?:in|on) ')
_DAY_BEFORE = re.compile(r'([a-z]{3,9})\.?,? (?=\S)')


def compare(one: str, other: str, question: str) -> bool | None:
    """Whether two cleaned texts are the same date, in the parts that `question` asks for if it asks
    for any.

    Args:
        one: cleaned.
        other: cleaned; the order of the two does not matter.
        question: as it was asked.

    Returns:
        None where they are not both dates, or years written as nothing but a number.
    """
    a, b = read(one), read(other)
    if a is None or b is None:
        return None
    parts = asked_parts(question)
    if parts and _in_parts(a, b, parts):
        return True
    if a.bare and b.bare:
        return None
    if a.bare or b.bare:  # a number and a date: the same only as 1960 and 1960 AD are
        return a.year == b.year and all(part is None for part in (*a[1:4], *b[1:4]))
    return a.sure and b.sure and a[:3] == b[:3] and _agree(a.weekday, b.weekday)


def _in_parts(a: Date, b: Date, parts: set[str]) -> bool:
    """Whether both give the parts asked for, for sure and alike."""
    if parts != {'year'} and not (a.sure and b.sure):
        return False
    given = [(getattr(a, part), getattr(b, part)) for part in parts]
    return all(mine is not None and mine == yours for mine, yours in given)


def _agree(mine: int | None, yours: int | None) -> bool:
    return mine is None or yours is None or mine == yours


def asked_parts(question: str) -> set[str]:
    """Parts of a date ('year', 'month', 'day', 'weekday') that a question asks for by name; the others are
    then not compared.

    Asked for a day or a date, one wants all of it: nothing is left out.
    """
    parts = set()
    if _YEAR_ASKED.search(question) and not _PERIOD_ASKED.search(question):
        parts.add('year')
    if _MONTH_ASKED.search(question):
        parts.add('month')
    if _WEEKDAY_ASKED.search(question):
        parts.add('weekday')
    elif _DAY_ASKED.search(question):
        parts.add('day')
    return parts


@lru_cache(maxsize=512)
def read(text: str) -> Date | None:
    """The date that a cleaned text is, with nothing else beside it but a preposition."""
    if len(text) > 60:
        return None
    text = text.casefold().strip('"\' ()').rstrip('.,; ')
    text = _BEFORE.sub('', text, count=1) if _BEFORE.match(text) else text
    if text in WEEKDAYS:
        return Date(None, None, None, WEEKDAYS.index(text))
    weekday, match = None, _DAY_BEFORE.match(text)
    if match and match.group(1) in _WEEKDAY:
        weekday, text = _WEEKDAY[match.group(1)], text[match.end() :]
    numeric = _NUMERIC.fullmatch(text)
    if numeric:
        return _from_numbers(
            int(numeric.group(1)), int(numeric.group(3)), int(numeric.group(4)), weekday
        )
    for form in _FORMS:
        match = form.fullmatch(text)
        if match:
            found = _from_match(
                {'month': None, 'day': None, 'era': None} | match.groupdict(), weekday
            )
            if found is not None:
                return found._replace(bare=text.isdigit())
    return None


def _from_match(parts: dict[str, str | None], weekday: int | None) -> Date | None:
    year, month, day = parts.get('year'), parts['month'], parts['day']
    if month and not month.isdigit():
        if month not in _MONTH or (len(month) < 4 and month != 'may' and not (year or day)):
            return None  # 'Jan' alone is a name
        month = _MONTH[month]
    era = (parts['era'] or '').replace('.', '').strip()
    if year and len(year) < 3 and not era and month is not None and day is None:
        return None  # 'May 68', 'August 12': a day, or a year of two digits
    number = None if year is None else -int(year) if era.startswith('b') else int(year)
    return _valid(
        number, None if month is None else int(month), None if day is None else int(day), weekday
    )


def _from_numbers(first: int, second: int, year: int, weekday: int | None) -> Date | None:
    found = [
        _valid(year, month, day, weekday)
        for day, month in dict.fromkeys([(first, second), (second, first)])
    ]
    found = [one for one in found if one is not None]
    return None if not found else found[0]._replace(sure=len(found) == 1)


def _valid(
    year: int | None, month: int | None, day: int | None, weekday: int | None
) -> Date | None:
    """The parts as a date, if there is such a day."""
    if year == 0:
        return None
    if day is not None:
        try:
            date(2000 if year is None or year < 0 else year, month, day)
        except ValueError:
            return None
    elif month is not None and not 1 <= month <= 12:
        return None
    return Date(year, month, day, weekday)
