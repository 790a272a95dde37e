"""Judging by rules: normalised exact match, choice letters, numbers. No network, and no persuading it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from tools_server.images import StoredImage

_ARTICLES = {'a', 'an', 'the'}
_NUMBER = re.compile(r'(?<![\w.,])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?!\.?\d)')  # not part of 1975.1.10
_LETTER = re.compile(
    r"""\s*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is\b|:)?\s*)?
        [(\[]?([A-Z])(?:[)\].:,]+(?:\s|$)|\s*$)""",  # '(B)', 'B.', 'B: red', but neither 'Big' nor 'A dog'
    re.IGNORECASE | re.VERBOSE,
)


def normalise(text: str) -> str:
    """Lower case, numbers in one form, no punctuation, no articles, single spaces."""
    text = unicodedata.normalize('NFKC', text).casefold()
    text = _NUMBER.sub(lambda match: f' {_plain_number(match.group())} ', text)
    # A point or minus stays only inside or before a number, where it means something.
    text = re.sub(r'(?<!\d)\.|\.(?!\d)|-(?!\d)|(?<=\w)-', ' ', text)
    text = ''.join(
        c if c.isalnum() or c in '.-' or unicodedata.category(c).startswith('M') else ' ' for c in text
    )
    return ' '.join(word for word in text.split() if word not in _ARTICLES)


def _plain_number(text: str) -> str:
    """'1,234.50' as '1234.5'; more digits than a decimal keeps exactly are left alone."""
    if len(text) > 24:
        return text
    number = Decimal(text.replace(',', '').replace('−', '-'))
    return format(number.normalize() if number else Decimal(0), 'f')


def choice_letter(response: str) -> str | None:
    """The option that a response chooses: B for 'B', '(b)', 'B. red', 'The answer is B'; None for no
    letter."""
    match = _LETTER.match(response.strip()[:200])  # a letter comes early, and matching stays fast
    return match.group(1).upper() if match else None


class RuleJudge:
    """Right when the normalised response equals a normalised reference.

    A reference that is a single capital letter is the option of a multiple-choice question; then the letter
    counts. With the options themselves given, a response may also be an option's text.
    """

    name = 'rules'
    services = ()

    def judge(
        self,
        question: str,
        references: list[str],
        response: str,
        image: StoredImage | None,
        choices: Sequence[str] = (),
    ) -> bool:
        """See `backends.Judge.judge`."""
        if choices:
            chosen = chosen_option(response, choices)
            return chosen is not None and chosen in {reference.strip().upper() for reference in references}
        return any(self._matches(reference, response) for reference in references)

    def _matches(self, reference: str, response: str) -> bool:
        if re.fullmatch(r'\s*[A-Z]\s*', reference):
            return choice_letter(response) == reference.strip()
        wanted = normalise(reference)
        return bool(wanted) and normalise(response) == wanted


def chosen_option(response: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that a response names by letter or in full; None for none, or for several."""
    letters = [chr(ord('A') + number) for number in range(len(choices))]
    answer = normalise(response)
    named = [
        letter
        for letter, choice in zip(letters, choices, strict=True)
        if answer and normalise(choice) == answer
    ]
    if named:
        return named[0] if len(named) == 1 else None
    letter = choice_letter(response)
    return letter if letter in letters else None
