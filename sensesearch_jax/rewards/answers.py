"""Answers as text: what of it does not count, which are equal, which option one names."""

import re
import unicodedata
from collections.abc import Sequence


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the normalised `answer` equals a normalised reference; an empty one never does."""
    normal = normalise_answer(answer)
    return bool(normal) and any(normal == normalise_answer(reference) for reference in references)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and articles, spaces folded.

    A point inside a number, or a minus before one, is no punctuation: 4.5 is not 45. Commas between digits
    are (1,200 is 1200). An answer that is nothing but an article stays what it is, for it is a letter: "A".
    """
    text = unicodedata.normalize('NFKC', text).casefold().replace('\u2212', '-')
    text = re.sub(r'(?<=\d),(?=\d)', '', text)
    kept = []
    for i, char in enumerate(text):
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        in_number = (char == '.' and before.isdigit() and after.isdigit()) or (
            char == '-' and after.isdigit() and not before.isalnum()
        )
        # Dashes and slashes part words; other punctuation (apostrophes, quotes, dots) just goes.
        if in_number or unicodedata.category(char)[0] != 'P':
            kept.append(char)
        elif unicodedata.category(char) == 'Pd' or char == '/':
            kept.append(' ')
    words = ''.join(kept).split()
    content = [word for word in words if word not in ('a', 'an', 'the')]
    return ' '.join(content or words)


def choice_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The option that `answer` names, as "B", "b.", "(B)", "B. text", "B: text" or in full; else None."""
    letters = [chr(ord('A') + i) for i in range(len(choices))]
    for letter, choice in zip(letters, choices, strict=True):
        if exact_match(answer, [choice]):
            return letter
    match = re.match(r'\s*[(\[]?([A-Za-z])(?:[)\].:]|\s*$)', answer)
    letter = match.group(1).upper() if match else None
    return letter if letter in letters else None
