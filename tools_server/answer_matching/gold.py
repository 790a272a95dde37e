"""References of a question: whether a response can be right by them at all, and which options they
mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools_server.answer_matching.characters import clean
from tools_server.answer_matching.letters import MOST_CHOICES, chosen_letter
from tools_server.answer_matching.text import MOST_CHARS


def gold_letters(references: Sequence[str], choices: Sequence[str]) -> frozenset[str]:
    """The letters of the options that the references name: 'B', 'B.', or an option's text."""
    return frozenset(filter(None, (chosen_letter(reference, choices) for reference in references)))


def gold_texts(references: Sequence[str], choices: Sequence[str]) -> tuple[str, ...]:
    """The right answers as a text would state them: with choices, the options behind the letters."""
    if not choices:
        return tuple(references)
    return tuple(
        choices[ord(letter) - ord('A')] for letter in sorted(gold_letters(references, choices))
    )


def gold_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Reason why no response could be judged right by these references; None where all is well."""
    for name, texts in (('references', references), ('choices', choices)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            return f'its {name} are not a list of texts'
    if not references:
        return 'it has no reference answer'
    if len(choices) > MOST_CHOICES:
        return f'it has {len(choices)} choices; letters reach for {MOST_CHOICES}'
    if not any(clean(reference[:MOST_CHARS]) for reference in references):
        return 'its reference answers are empty'
    for reference in references:
        if choices and chosen_letter(reference, choices) is None:
            named = f'the reference {reference[:80]!r} names none of the {len(choices)} choices'
            return f'{named}; give a letter A to {chr(ord("A") + len(choices) - 1)}'
    return None
