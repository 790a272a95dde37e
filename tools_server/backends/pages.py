"""The readable text of a web page."""

from __future__ import annotations

from html.parser import HTMLParser

SILENT_TAGS = {'script', 'style', 'noscript', 'template', 'svg', 'title', 'nav', 'footer'}


def text_of(page: bytes) -> str:
    """The readable text of an HTML page, one line per block."""
    parser = _Text()
    parser.feed(page.decode('utf-8', 'replace'))
    parser.close()
    lines = (' '.join(line.split()) for line in ''.join(parser.pieces).splitlines())
    return '\n'.join(line for line in lines if line)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._silent += tag in SILENT_TAGS
        if tag in ('p', 'br', 'div', 'li', 'tr', 'h1', 'h2', 'h3', 'h4', 'section', 'article'):
            self.pieces.append('\n')

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT_TAGS:
            self._silent = max(0, self._silent - 1)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)
