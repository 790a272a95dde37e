"""Words in the form in which they are indexed, searched and compared: lower case, without accents,
stemmed."""

from __future__ import annotations

import tantivy

NAME = 'words'  # the analyser's name in an index


def analyser() -> tantivy.TextAnalyzer:
    """What splits a text into such words; the same for passages and queries."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(64))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stopword('english'))
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer('english'))
        .build()
    )
