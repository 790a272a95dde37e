"""Plain text out of the packages' records."""

import html
import re
import unicodedata


def clean(text: str) -> str:
    """HTML fragment to plain text on one line."""
    text = re.sub(r'</?[a-zA-Z][^>]*>', ' ', text or '')
    text = unicodedata.normalize('NFC', html.unescape(text)).replace('\u200b', '')
    text = re.sub(r'\s+', ' ', text).strip()
    return re.sub(r' ([;,.:)])', r'\1', text)


def cut_at_word(text: str, limit: int) -> str:
    """At most `limit` characters, ending with a word that can end a title; no open parenthesis."""
    if len(text) <= limit:
        return text
    text = text[: limit + 1].rsplit(' ', 1)[0]
    if text.count('(') > text.count(')'):
        text = text[: text.rindex('(')]
    text = re.sub(r'; \((?:verso|reverse|obverse)\).*', '', text)
    while True:
        shorter = re.sub(
            r'[ ,:;.–-]+(and|or|of|the|a|an|in|on|with|from|by|for|to|at|into)?$',
            '',
            text.strip(),
            flags=re.IGNORECASE,
        )
        if shorter == text:
            return text
        text = shorter


def slug(text: str) -> str:
    """A file name's worth of ASCII letters and digits."""
    text = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore').decode().lower()
    return re.sub(r'[^a-z0-9]+', '-', text).strip('-')
