"""Pages and PDF files to text: encodings, what is left open, damage, and what takes too long."""

import io
import time
from concurrent.futures import ThreadPoolExecutor

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from tools_server.failures import ToolError
from tools_server.limits import deadline
from tools_server.pages.encodings import decoded
from tools_server.pages.extract import MOST_CHARS, text_of
from tools_server.pages.reader import LARGE_S, WAIT_S, PageReader

# One text per encoding, each in a language that is written in it.
TEXTS = {
    'gb2312': '埃菲尔铁塔高三百三十米。它建于一八八九年，是巴黎的象征。',
    'big5': '艾菲爾鐵塔高三百三十公尺。它建於一八八九年，是巴黎的象徵。',
    'shift_jis': 'エッフェル塔の高さは330メートルです。1889年に建てられました。',
    'euc-kr': '에펠탑의 높이는 330미터입니다. 1889년에 세워졌습니다.',
    'windows-1251': 'Высота Эйфелевой башни 330 метров. Она построена в 1889 году.',
    'iso-8859-1': 'La tour Eiffel mesure 330 mètres. Élevée en 1889, elle est à Paris.',
    'utf-16': 'Der Eiffelturm ist 330 Meter hoch. Er ist größer als das Straßburger Münster.',
    'utf-16-be': 'Der Eiffelturm ist 330 Meter hoch. Er ist größer als das Straßburger Münster.',
    'utf-8': 'Der Eiffelturm ist 330 Meter hoch. Er ist größer als das Straßburger Münster.',
    'iso-2022-jp': 'エッフェル塔の高さは330メートルです。1889年に建てられました。',
}
PAGE = '<html><head>{meta}<title>t</title></head><body><p>{text}</p></body></html>'


@pytest.mark.parametrize('encoding', TEXTS)
@pytest.mark.parametrize('named_in', ['header', 'page', 'header, wrongly, and page'])
def test_a_page_is_read_in_the_encoding_that_it_names(encoding, named_in):
    text = TEXTS[encoding]
    meta = (
        f'<meta http-equiv="Content-Type" content="text/html; charset={encoding}">'
        if 'page' in named_in
        else ''
    )
    kind = {'header': f'text/html; charset="{encoding}"', 'page': 'text/html'}.get(
        named_in, 'text/html; charset=utf-8'
    )
    assert text_of(PAGE.format(meta=meta, text=text).encode(encoding), kind) == text


@pytest.mark.parametrize('encoding', [name for name in TEXTS if name != 'iso-2022-jp'])
def test_an_encoding_that_nobody_names_is_guessed(encoding):
    text = TEXTS[encoding] * 8
    assert text_of(PAGE.format(meta='', text=text).encode(encoding), 'text/html') == text
    assert text_of(text.encode(encoding), 'text/plain') == text


@pytest.mark.parametrize(
    'label', ['idna', 'unicode_escape', 'utf-7', 'zlib', 'nonsense', '\udc80', 'x' * 9999]
)
def test_an_encoding_of_no_known_name_is_not_believed(label):
    assert decoded('größer'.encode(), label) == 'größer'


@pytest.mark.parametrize(
    'page',
    [
        '<html><head><title>t</title></head><body><script>x()</script><p>The tower is 330 m high.</p></body></html>',
        '<body><nav><a href="/">Home</a><p>The tower is 330 m high.</p>',
        '<body><footer><p>The tower is 330 m high.</p>',
        '<body><svg><title><p>The tower is 330 m high.</p>',
        '<svg><title><p>The tower is 330 m high.</p>',
        '<![foo[x]]><p>The tower is 330 m high.</p>',
        '<p>The tower is 330 m high.</p><p>' + '&#' + '5' * 5000 + ';</p>',
        '<a ' * 1000 + '><p>The tower is 330 m high.</p>',
        '<?xml version="1.0" encoding="utf-16"?><html xmlns="http://www.w3.org/1999/xhtml"><p>The tower is 330 m high.',
        '<p>The tower is 330 m high.\x00&#xd800;</p>',
        '<div>' * 200 + 'The tower is 330 m high.',
    ],
)
def test_what_is_odd_or_left_open_does_not_empty_a_page(page):
    text = text_of(page.encode(), 'text/html')
    assert 'The tower is 330 m high.' in text and '<p>' not in text and 'x()' not in text
    text.encode()


@pytest.mark.parametrize(
    'page', ['', '<![foo[x]]>', '<html></html>', '<!-- <p>hidden</p>', '\x00' * 100]
)
def test_a_page_without_text_is_empty(page):
    assert text_of(page.encode(), 'text/html') == ''


def test_a_long_page_is_cut():
    page = ''.join(
        f'<p>Paragraph {number} of a page that nobody will read to its end.</p>'
        for number in range(9000)
    )
    assert len(text_of(page.encode(), 'text/html')) <= MOST_CHARS


def pdf(*pages: str) -> bytes:
    """A PDF file with a line of text on each page."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject({
        NameObject('/Type'): NameObject('/Font'), NameObject('/Subtype'): NameObject('/Type1'),
        NameObject('/BaseFont'): NameObject('/Helvetica'),
    })  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(600, 800)
        page[NameObject('/Resources')] = DictionaryObject(
            {NameObject('/Font'): DictionaryObject({NameObject('/F1'): font})}
        )
        stream = DecodedStreamObject()
        stream.set_data(f'BT /F1 12 Tf 50 700 Td ({text}) Tj ET'.encode())
        page[NameObject('/Contents')] = writer._add_object(stream)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_a_pdf_file_is_read():
    assert text_of(pdf('The tower is 330 m high.', 'It stands in Paris.'), 'application/pdf') == (
        'The tower is 330 m high.\nIt stands in Paris.')  # fmt: skip


@pytest.mark.parametrize('data', [b'', b'%PDF-1.4', b'no pdf at all', pdf('text')[:200]])
def test_a_damaged_pdf_file_is_refused(data):
    with pytest.raises(ToolError) as error:
        text_of(data, 'application/pdf')
    assert error.value.kind == 'refused'


def test_a_page_that_takes_for_ever_is_given_up_and_the_next_one_is_read():
    """lxml compares each attribute with all before it."""
    page = '<p ' + ' '.join(f'a{number}=1' for number in range(200_000)) + '>text'
    reader = PageReader()
    try:
        assert reader.text(b'<p>first</p>', 'text/html') == 'first'
        start = time.monotonic()
        with pytest.raises(ToolError) as error:
            reader.text(page.encode(), 'text/html')
        assert error.value.kind == 'refused' and time.monotonic() - start < LARGE_S + 1
        start = time.monotonic()
        with deadline.within(0.3), pytest.raises(ToolError) as error:
            reader.text(page.encode(), 'text/html')
        assert error.value.kind == 'timeout' and time.monotonic() - start < 1
        assert reader.text(b'<p>next</p>', 'text/html') == 'next'
    finally:
        reader.close()


def test_small_pages_do_not_wait_behind_large_ones():
    page = ('<p ' + ' '.join(f'a{number}=1' for number in range(200_000)) + '>text').encode()
    reader = PageReader()
    try:
        reader.text(b'<p>first</p>', 'text/html')
        with ThreadPoolExecutor(8) as threads:
            crowd = [threads.submit(reader.text, page, 'text/html') for _ in range(8)]
            time.sleep(0.3)
            start = time.monotonic()
            for number in range(5):
                assert (
                    reader.text(f'<p>small {number}</p>'.encode(), 'text/html') == f'small {number}'
                )
            assert time.monotonic() - start < 1
            start = time.monotonic()
            kinds = {job.exception().kind for job in crowd}
            assert (
                kinds <= {'refused', 'timeout'} and time.monotonic() - start < WAIT_S + LARGE_S + 1
            )
    finally:
        reader.close()
