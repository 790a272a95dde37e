"""The readable text of a page or PDF file. Runs in worker processes: a parser may take any time on
what was made for that.
"""

from __future__ import annotations

import io
import re

import trafilatura
from lxml import etree, html

from tools_server.failures import ToolError
from tools_server.pages.encodings import decoded

MOST_CHARS = 200_000  # of a page's text; what matters for a query is looked for in it
# of a page whose main content is looked for; of a larger one all text is taken
MOST_ELEMENTS = 30_000
FEW_CHARS = 200  # a main content below this is taken for a miss
MOST_PDF_PAGES = 100
PDF = 'application/pdf'

_SILENT = {'script', 'style', 'noscript', 'template', 'head', 'iframe', 'select', 'datalist'}
# left out too, unless nothing remains: one that is not closed holds the page
_AROUND = {'nav', 'footer', 'svg'}
_BLOCKS = {'p', 'br', 'div', 'li', 'tr', 'td', 'th', 'dt', 'dd', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'section',
           'article', 'main', 'blockquote', 'pre', 'table', 'ul', 'ol', 'dl', 'title', 'figcaption'}  # fmt: skip
_BODY = re.compile(r'<body\b|</head\b|<svg\b', re.IGNORECASE)
_TITLE = re.compile(r'</?title\b[^<>]{0,500}>', re.IGNORECASE)
_CHARSET = re.compile(r"""charset\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""")
# Neither signs nor space: control characters, and halves of UTF-16 pairs, which no UTF-8 can hold.
_UNWRITTEN = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]')


def text_of(data: bytes, content_type: str) -> str:
    """The readable text, one line per block, cut after `MOST_CHARS` characters; '' where there is
    none.

    Args:
        data: the file.
        content_type: as the server named it.

    Raises:
        ToolError: 'refused'; a PDF file that is damaged or locked.
    """
    kind = content_type.partition(';')[0].strip().lower()
    if kind == PDF:
        return _tidied(_pdf_text(bytes(data)))
    match = _CHARSET.search(content_type.lower())
    text = _UNWRITTEN.sub('', decoded(bytes(data), match and match.group(1)))
    return _tidied(text if kind == 'text/plain' else _page_text(text))


def _page_text(page: str) -> str:
    # The title of a drawing, left open, would make all that follows a title.
    if (body := _BODY.search(page)) is not None:
        page = page[: body.start()] + _TITLE.sub(' ', page[body.start() :])
    data = page.encode('utf-8', 'replace')
    tree = _tree(data)
    if tree is None:
        return ''
    text = ''
    if sum(1 for _ in tree.iter()) <= MOST_ELEMENTS:
        text = trafilatura.extract(tree, favor_recall=True, include_comments=False, fast=True) or ''
        if len(text) < FEW_CHARS:
            tree = _tree(data)  # the extractor changes what it is given
    if len(text) < FEW_CHARS:
        everything = (
            _all_text(tree, _SILENT | _AROUND) or _all_text(tree, _SILENT) or _all_text(tree, set())
        )
        text = max(text, everything, key=len)
    return text


def _tree(data: bytes) -> html.HtmlElement | None:
    parser = html.HTMLParser(encoding='utf-8', remove_comments=True, remove_pis=True)
    try:
        return html.document_fromstring(data, parser=parser)
    except etree.ParserError:  # there is nothing in it
        return None


def _all_text(tree: html.HtmlElement, silent: set[str]) -> str:
    """All text but that inside of some elements."""
    pieces: list[str] = []
    walk = etree.iterwalk(tree, events=('start', 'end'))
    for event, element in walk:
        if element.tag in _BLOCKS:
            pieces.append('\n')
        if event == 'end':
            pieces.append(element.tail or '')
        elif element.tag in silent:
            walk.skip_subtree()
        else:
            pieces.append(element.text or '')
    return ''.join(pieces).strip()


def _pdf_text(data: bytes) -> str:
    import pypdf  # takes a moment, and most workers read no PDF file

    pieces: list[str] = []
    room = MOST_CHARS
    try:
        for page in pypdf.PdfReader(io.BytesIO(data)).pages[:MOST_PDF_PAGES]:
            pieces.append(page.extract_text()[:room])
            room -= len(pieces[-1])
            if room <= 0:
                break
    except MemoryError:
        raise
    except Exception as error:  # its readers raise all kinds of errors on damaged files
        if not any(pieces):
            raise ToolError(
                'refused', f'the PDF file cannot be read ({type(error).__name__})'
            ) from None
    return '\n'.join(pieces)


def _tidied(text: str) -> str:
    """Lines without outer and double blanks, none of them empty."""
    lines = (
        ' '.join(line.split()) for line in _UNWRITTEN.sub('', text[: 4 * MOST_CHARS]).splitlines()
    )
    return '\n'.join(line for line in lines if line)[:MOST_CHARS]
