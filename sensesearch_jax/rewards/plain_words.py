"""Normalised words, as SQuAD's evaluation has them: small letters, no ASCII punctuation, no articles.

Punctuation is deleted, not replaced by a space: 'well-known' is one word and '3.5' is '35'. MMSearch,
InfoSeek and the released reward of SenseNova-MARS all use this form.
"""

import re
import string

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(?:an?|the)\b')


def plain(text: str) -> str:
    """A text in small letters and without ASCII punctuation."""
    return text.lower().translate(_NO_PUNCTUATION)


def words(text: str) -> list[str]:
    """The normalised words of a text."""
    return _ARTICLES.sub(' ', plain(text)).split()
