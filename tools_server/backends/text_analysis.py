"""Words in the form in which they are indexed, searched and compared: lower case, without accents,
stemmed.
"""

from __future__ import annotations

from collections.abc import Callable

import tantivy

from tools_server.text_forms import composed

NAME = 'words'  # the analyser's name in an index

# Some languages are written without blanks: there each sign, with its marks, counts as a word, and
# a run of katakana, in which Japanese writes words from abroad, as one. Elsewhere a word is a run
# of letters, their marks, and digits.
_SIGNS = r'\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}'
_KATAKANA = r'\p{Katakana}ー'
_WORD = rf'[{_KATAKANA}]+|[{_SIGNS}]\p{{M}}*|[\p{{Alphabetic}}\p{{M}}\p{{N}}--{_SIGNS}{_KATAKANA}]+'


def analyser() -> tantivy.TextAnalyzer:
    """Analyser that splits a text in composed form (`text_forms.composed`) into such words."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(_WORD))
        .filter(tantivy.Filter.remove_long(64))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stopword('english'))
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer('english'))
        .build()
    )


def splitter() -> Callable[[str], list[str]]:
    """A function from any text to its words; the same for passages and queries."""
    analyse = analyser().analyze
    return lambda text: analyse(composed(text))
