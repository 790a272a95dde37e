"""Multiple choice: the one option that a response names, by its letter, by its text or by both.

Every letter that is named counts: '(A) or (B)' chooses nothing, nor does a letter with another
option's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools_server.answer_matching.characters import clean, fold
from tools_server.answer_matching.phrases import without_lead
from tools_server.answer_matching.text import MOST_CHARS, answer_text, same_answer
from tools_server.answer_matching.words import read

MOST_CHOICES = 26
_COUNTED = 8  # letters up to H are taken for options even where there are fewer of them

_ALONE = re.compile(r'[(\[{<"\']*([A-Za-z])[)\]}>"\'.:,;!]*')
# '(B) blue', 'B. blue'
_FIRST = re.compile(r'[(\[{]?([A-Za-z])(?:[)\]}]+[.:,]?|[.:,;]| -(?= ))(?: ?(?=\S))')
_CAPITAL = re.compile(r'([A-Z]) (?=\S)')  # 'B blue'
_LAST = re.compile(r'(.+?)[,:;]? ?(?:[(\[]([A-Za-z])[)\]]|(?<=, )([A-Z]))\.?')  # 'blue (B)'
_CONFIRMED = re.compile(
    r'(?:is|would be|seems) (?:the )?(?:(?:correct|right|best)(?: (?:answer|option|choice|one))?|answer)\b',
    re.IGNORECASE,
)
_REASON = re.compile(r'(?:because|since|as)\b', re.IGNORECASE)
_OTHERWISE = re.compile(
    r'(?:or|and|nor|but|not|no|neither|wrong|incorrect|false|is (?:not|wrong|incorrect|false))\b',
    re.IGNORECASE,
)
_STATED = re.compile(
    r"(?<!wrong )(?<!incorrect )(?<!false )\banswer(?: is| would be|:| is:)(?: (?:option|choice))? [(\[\"']?"
    r"(?:([A-Za-z])(?:[)\]\"'.:,;!]|$)|([B-HJ-Z])(?= ))",
    re.IGNORECASE,
)
# Letters named anywhere: '(b)', 'B', 'b.'; not the 'A' of 'A flag', nor 'I'.
_NAMED = re.compile(
    r"[(\[]([A-Za-z])[)\]]|(?<![\w'.])([B-HJ-Z])(?![\w'+#*&-])|(?<![\w'.])([b-hj-z])[.)](?=\s|$)"
    r"|(?<![\w'.])([Aa])[.)](?=\s|$)|(?<![\w'.])(A)(?![\w'+#*&-])(?! (?!(?:or|and|nor|is|not|but|because)\b)[a-z])"
)


def chosen_letter(response: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that `response` chooses; None for none, for several, or for one
    beyond the choices.

    Args:
        response: such as 'B', 'b.', '(B)', 'B. blue', 'The answer is B', 'blue (B)', or the text of
            an option.
        choices: the options A, B, … in order; empty where they are not known, so that only letters
            can be read.
    """
    text = answer_text(response)
    if len(text) > MOST_CHARS:
        return None
    options = dict(
        zip(map(chr, range(ord('A'), ord('A') + MOST_CHOICES)), _without_letters(choices))
    )
    known = set(options) or {chr(ord('A') + number) for number in range(MOST_CHOICES)}
    said = without_lead(text)
    alone = _ALONE.fullmatch(said)
    if alone and alone.group(1).upper() in known:
        return alone.group(1).upper()
    named = None if alone else _by_letter(response, said, options, known)
    by_text = _by_text((text, said), options)
    if not by_text:
        return named if named in known else None
    if named is not None and named not in by_text:
        # 'E. coli' is the option of that text, unless all options begin with letters, which then
        # are of another order.
        exact = {letter for letter, option in options.items() if fold(option) == fold(text)}
        return (
            next(iter(exact))
            if len(exact) == 1 and not all(map(_FIRST.match, options.values()))
            else None
        )
    if named is not None:
        return named
    return next(iter(by_text)) if len(by_text) == 1 else None


def _without_letters(choices: Sequence[str]) -> list[str]:
    """The options without letters of their own, where each begins with the one of its place: 'A.

    red', 'B. blue'.
    """
    texts = [answer_text(choice) for choice in choices]
    matches = [_FIRST.match(text) for text in texts]
    if len(texts) > 1 and all(
        match and match.group(1).upper() == chr(ord('A') + number)
        for number, match in enumerate(matches)
    ):
        return [text[match.end() :] for text, match in zip(texts, matches)]
    return texts


def _by_text(texts: Sequence[str], options: dict[str, str]) -> set[str]:
    """The options whose text one of `texts` is: in the same words, or else the same in value."""
    options = {letter: option for letter, option in options.items() if len(option) <= MOST_CHARS}

    def same_words(a, b):
        return bool(read(a).full) and read(a).full == read(b).full

    for same in (same_words, lambda a, b: same_answer(a, b, '')):
        for text in texts:
            found = {letter for letter, option in options.items() if same(text, option)}
            if found:
                return found
    return set()


def _by_letter(response: str, said: str, options: dict[str, str], known: set[str]) -> str | None:
    """The only letter that is named as the answer."""
    first_line = clean(response.strip().partition('\n')[0])
    alone = _ALONE.fullmatch(without_lead(first_line))
    if alone:  # a letter in a line of its own; `said` has the lines joined
        rest = clean(response.strip().partition('\n')[2])
        return _checked(alone.group(1).upper(), rest, options, known)
    first = _FIRST.match(said)
    if first:
        return _checked(first.group(1).upper(), said[first.end() :], options, known)
    capital = _CAPITAL.match(said)
    if capital:
        letter, rest = capital.group(1), said[capital.end() :]
        if letter in options and same_answer(rest, options[letter], ''):
            return letter
        if (
            _CONFIRMED.match(rest)
            or rest.startswith('(')
            or (letter not in 'AI' and _REASON.match(rest))
        ):
            return _checked(letter, rest, options, known)
    last = _LAST.fullmatch(said)
    if last:
        letter = (last.group(2) or last.group(3)).upper()
        if letter in options and same_answer(last.group(1), options[letter], ''):
            return letter
    text = answer_text(response)
    stated = {(match.group(1) or match.group(2)).upper() for match in _STATED.finditer(text)}
    if len(stated) == 1:
        letter = next(iter(stated))
        return None if _others(text, letter, known) else letter
    return None


def _checked(letter: str, rest: str, options: dict[str, str], known: set[str]) -> str | None:
    """`letter`, unless what follows it is another option or names another letter."""
    texts = _by_text((rest,), options) if rest else set()
    if texts:
        return letter if letter in texts else None
    if _OTHERWISE.match(rest) or _others(rest, letter, known):
        return None
    return letter


def _others(text: str, letter: str, known: set[str]) -> set[str]:
    """Letters of options named in `text` besides `letter`."""
    counted = known | {chr(ord('A') + number) for number in range(_COUNTED)}
    named = {next(filter(None, match.groups())).upper() for match in _NAMED.finditer(text)}
    return (named & counted) - {letter}
