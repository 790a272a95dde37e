"""Texts and pages made to take long, or much memory, to read: what search results, pages, responses
and judges may hold. Each is a function, for some are large."""

from __future__ import annotations

SNIPPETS = {
    'units without end': lambda: 'a. ' * 8_000,
    'one word': lambda: 'x' * 200_000,
    'no words': lambda: '…' * 200_000,
    'combining marks': lambda: 'a' + '\u0301\u0316' * 60_000,
    'half a character': lambda: 'a \ud800 tower \udfff',
    'tags': lambda: '<tool_call>' * 20_000,
    'nothing': lambda: None,
    'an object': lambda: {'a': [{}] * 1000},
    'a number': lambda: 10**400,
}

RESPONSES = {
    'combining marks': lambda: 'a' + '\u0301' * 60_000,
    'marks out of order': lambda: 'a' + '\u0316\u0301\u0327' * 40_000,
    'digits': lambda: '1' * 200_000,
    'digits and commas': lambda: '1,000' * 60_000,
    'points': lambda: '1.' * 150_000,
    'minus signs': lambda: '-' * 300_000,
    'blanks': lambda: ' ' * 400_000 + 'x',
    'letters': lambda: '(A) ' * 100_000,
    'ligatures': lambda: '\ufdfa' * 50_000,  # each becomes 18 characters in compatibility form
    'quotes': lambda: '"\\' * 150_000,
    'brackets': lambda: '[' * 300_000,
}

REPLIES = {  # of a judge or a summariser
    'blanks before a thought': lambda: ' ' * 200_000 + '<think>',
    'thoughts that do not end': lambda: '<think>' * 40_000,
    'thoughts': lambda: '<think></think>' * 20_000 + 'Maybe',
    'stars': lambda: '*' * 200_000 + 'yes' + '*' * 200_000 + '?',
    'megabytes': lambda: 'Yes ' * 1_000_000,
}


def html(body: str) -> bytes:
    """A page with this body."""
    return f'<html><head><title>t</title></head><body>{body}</body></html>'.encode()


PAGES = {
    'open tags': lambda: html('<a ' * 700_000),
    'open brackets': lambda: html('<' * 2_000_000),
    'nested': lambda: html('<div>' * 400_000),
    'nested tables': lambda: html('<table><tr><td>' * 100_000),
    'attributes': lambda: html('<a ' + 'b=c ' * 500_000 + '>'),
    'entities': lambda: html('&#' + '9' * 5_000 + ';' + '&amp' * 300_000),
    'comments': lambda: html('<!--' * 500_000),
    'marked sections': lambda: html('<![foo[x]]>' * 100_000),
    'instructions': lambda: html('<?' * 1_000_000),
    'paragraphs': lambda: html('<p>a. b. c.</p>' * 150_000),
    'units': lambda: html('<p>' + 'a. ' * 600_000 + '</p>'),
    'links': lambda: html('<li><a href="/x">x</a></li>' * 100_000),
    'nothing but zeros': lambda: bytes(4_000_000),
    'an unclosed nav': lambda: html('<nav>menu<p>The tower is 330 m high.'),
}

LINKS = {
    'half an address': 'http://[',
    'a snowman': 'http://☃.net/',
    'a file': 'file:///etc/passwd',
    'a port': 'http://127.0.0.1:99999/',
    'blanks': 'http://a b/',
    'a name without end': 'http://' + 'a.' * 20_000 + 'com/',
    'data': 'data:image/png;base64,é',
    'data without end': 'data:image/png;base64,' + 'A' * 1_000_000,
}
