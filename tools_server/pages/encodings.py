"""The text of a page's bytes: which encoding it is in, by what it says and by what it is."""

from __future__ import annotations

import codecs
import re

import charset_normalizer

# A byte order mark says it for certain.
_MARKS = (
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)
# As browsers do, a label is taken for the larger encoding that its users write in (WHATWG
# Encoding).
_WIDER = {
    'ascii': 'cp1252', 'iso8859-1': 'cp1252', 'iso8859-9': 'cp1254', 'iso8859-11': 'cp874', 'tis-620': 'cp874',
    'gb2312': 'gb18030', 'gbk': 'gb18030', 'hz': 'gb18030', 'shift_jis': 'cp932', 'euc_kr': 'cp949',
    'big5': 'big5hkscs', 'utf-16': 'utf-16-le',
}  # fmt: skip
_KNOWN = {
    'utf-8', 'utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be', 'gb18030', 'big5hkscs', 'cp932', 'euc_jp',
    'iso2022_jp', 'cp949', 'johab', 'cp866', 'cp874', 'koi8-r', 'koi8-u', 'mac-cyrillic', 'mac-roman',
    *(f'cp{number}' for number in range(1250, 1259)), *(f'iso8859-{number}' for number in range(2, 17)),
}  # fmt: skip
# Those that a guess may be: their letters are not Latin ones, by which encodings hardly differ.
# What is left is Western, as browsers take it.
_TOLD_APART = {
    'gb18030', 'big5hkscs', 'cp932', 'euc_jp', 'iso2022_jp', 'cp949', 'johab', 'cp866', 'cp874', 'cp1251', 'koi8-r',
    'koi8-u', 'mac-cyrillic', 'iso8859-5', 'cp1253', 'iso8859-7', 'cp1255', 'iso8859-8', 'cp1256', 'iso8859-6',
}  # fmt: skip
_ALIASES = {
    'x-sjis': 'cp932',
    'x-gbk': 'gb18030',
    'x-euc-jp': 'euc_jp',
    'x-x-big5': 'big5hkscs',
    'utf8': 'utf-8',
}
_DECLARED = re.compile(
    rb"""(?:charset|encoding)\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{2,40})""", re.IGNORECASE
)
HEAD_BYTES = 4096  # in which a page must name its encoding
SAMPLE_BYTES = 100_000  # by which an encoding that nobody names is guessed


def decoded(data: bytes, declared: str | None = None) -> str:
    """The text of a page or plain file; what cannot be read becomes U+FFFD.

    Args:
        data: its bytes.
        declared: the encoding that the server named; it may be wrong, or none of any known name.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, 'replace')
    if (encoding := _two_bytes(data)) is not None:
        return data.decode(encoding, 'replace')
    named = [declared] if declared else []
    named += [
        match.decode('ascii', 'replace') for match in _DECLARED.findall(data[:HEAD_BYTES])[:3]
    ]
    encodings = [encoding for name in named if (encoding := known(name)) is not None]
    # Bytes beyond ASCII that are UTF-8 by chance are rare; servers that name a default which is not
    # so are common. Encodings that shift by escape sequences look like ASCII, so those are believed
    # first.
    first = [encoding for encoding in encodings if encoding == 'iso2022_jp']
    for encoding in (*first, 'utf-8', *encodings):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    if encodings:
        return data.decode(encodings[0], 'replace')
    guess = charset_normalizer.from_bytes(_sample(data)).best()
    encoding = known(guess.encoding) if guess is not None else None
    return data.decode(encoding if encoding in _TOLD_APART else 'cp1252', 'replace')


def known(label: str) -> str | None:
    """Python's name of the encoding that a label stands for on the web; None for none of these."""
    label = label.strip().strip('"\'').lower()
    try:
        name = _ALIASES.get(label) or codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    name = _WIDER.get(name, name)
    return name if name in _KNOWN else None


def _two_bytes(data: bytes) -> str | None:
    """UTF-16 without a mark: nearly every second byte of a page's own signs is zero."""
    head = data[:HEAD_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) < 0.2 * len(head) or min(even, odd) > 0.02 * len(head):
        return None
    return 'utf-16-be' if even > odd else 'utf-16-le'


def _sample(data: bytes) -> bytes:
    """Text of a page without its tags, which would be taken for a language."""
    text = re.sub(rb'<[^<>]{0,2000}>', b' ', data[: 4 * SAMPLE_BYTES])
    return b' '.join(text.split())[:SAMPLE_BYTES]
