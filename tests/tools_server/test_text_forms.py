"""Text in one form, words of many scripts, titles of any sort, and excerpts in time that does not
explode."""

import time
import unicodedata

import pytest
import tantivy
from hypothesis import given
from hypothesis import strategies as st

from tools_server.backends.judge_openai import parse_verdict
from tools_server.backends.snippet import MOST_CHARS, snippet
from tools_server.backends.text_analysis import NAME, analyser, splitter
from tools_server.backends.text_bm25 import BM25, document, schema
from tools_server.failures import ToolError
from tools_server.schemas import Match, Passage
from tools_server.text_forms import as_text, as_title, composed

QUICK_S = 0.5


class within:
    """Fails when its block takes longer than a hostile text may."""

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        assert time.perf_counter() - self.start < QUICK_S


@given(st.text())
def test_composed_is_nfc_where_no_letter_carries_dozens_of_marks(text):
    assert composed(text) == unicodedata.normalize('NFC', text)


@pytest.mark.parametrize('marks', ['\u0301\u0323', '\u0f73\u0f74', '\u0344', '\u0301'])
def test_piles_of_marks_are_composed_in_no_time(marks):
    words = splitter()
    with within():
        assert len(composed('e' + marks * 100_000)) < 100
        words('e' + marks * 100_000)


def test_halves_of_pairs_are_no_reason_to_fail():
    assert composed('a \ud800 b') == 'a ? b' and splitter()('tower \udfff high') == [
        'tower',
        'high',
    ]


@pytest.mark.parametrize(
    'text, words',
    [
        ('東京タワーの高さは333', ['東', '京', 'タワー', 'の', '高', 'さ', 'は', '333']),
        ('埃菲尔铁塔', ['埃', '菲', '尔', '铁', '塔']),
        ("Côte d'Ivoire 3,5", ['cote', 'd', 'ivoir', '3', '5']),
        ('ＡＢＣ', ['abc']),
        ('에펠탑의 높이', ['에펠탑의', '높이']),
        ('हिन्दी भाषा', ['हिन्दी', 'भाषा']),
        ('ภาษาไทย', ['ภ', 'า', 'ษ', 'า', 'ไ', 'ท', 'ย']),
    ],
)
def test_words(text, words):
    assert splitter()(text) == words
    assert splitter()(unicodedata.normalize('NFD', text)) == words


@pytest.fixture(scope='module')
def index():
    made = tantivy.Index(schema())
    made.register_tokenizer(NAME, analyser())
    writer = made.writer(heap_size=15_000_000, num_threads=1)
    passages = [
        ('Japan', '日本の首都は東京です。人口は多い。'),
        ('Peking', '北京是中国的首都。' + '这是一座很大的城市。' * 40 + '长城在北边。'),
        (
            unicodedata.normalize('NFD', 'Málaga'),
            unicodedata.normalize('NFD', 'La Malagueta está en Málaga.'),
        ),
        ('Łódź', 'Łódź leży w Polsce.'),
    ]
    for number, (title, text) in enumerate(passages):
        writer.add_document(document(title, text, number))
    writer.commit()
    writer.wait_merging_threads()
    made.reload()
    return BM25(made, 60, 3.0)


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize(
    'query, title',
    [
        ('東京', 'Japan'),
        ('中国的首都', 'Peking'),
        ('Málaga', 'Málaga'),
        ('malaga', 'Málaga'),
        ('Łódź', 'Łódź'),
    ],
)
def test_passages_are_found_in_any_script_and_form(index, query, title, form):
    assert index.search(unicodedata.normalize(form, query), 1)[0].title == title


def test_an_excerpt_of_chinese_is_cut_at_its_full_stops(index):
    found = index.search('长城', 1)[0].text
    assert '长城在北边。' in found and len(found) <= 60
    words = splitter()
    text = '甲在东。' + '乙在南。' * 30 + '「丙在西！」' + '丁在北？' * 30
    assert snippet(text, '丙', 16, words) == '甲在东。… 「丙在西！」…'
    assert snippet('无' * 500 + '丙' + '无' * 500, '丙', 40, words).count('丙') == 1


@pytest.mark.parametrize(
    'text',
    ['a. ' * 8_000, 'a. ' * 300_000, '.' * 900_000, 'a' * 900_000, 'a ' * 400_000, '\n' * 900_000, '中。' * 300_000,
     'a.a;' * 200_000, 'e' + '\u0301\u0323' * 400_000],
    ids=['24 KB of sentences', 'sentences', 'stops', 'letters', 'words', 'lines', 'Chinese', 'no blanks', 'marks'],
)  # fmt: skip
@pytest.mark.parametrize(
    'query', ['a', 'nothing', 'a b c d e f ' * 1500], ids=['common', 'none', 'long']
)
def test_an_excerpt_of_anything_is_made_in_no_time(text, query):
    words = splitter()
    with within():
        assert len(snippet(text, query, 1500, words)) <= 1500


@given(
    st.lists(
        st.sampled_from(
            ['tower', 'high', 'm.', 'built;', '1889!', 'x\n', '塔。', '高！」', 'ab.c', ' ']
        ),
        max_size=60,
    ),
    st.integers(12, 80),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_an_excerpt_keeps_to_its_length_and_says_each_cut(pieces, max_chars, most):
    text = ' '.join(pieces)
    found = snippet(text, 'tower 塔', max_chars, splitter(), most)
    assert len(found) <= max_chars
    kept = [piece.strip() for piece in found.split('…')]
    assert all(' '.join(piece.split()) in ' '.join(text.split()) for piece in kept)
    assert '…' in found or ' '.join(found.split()) == ' '.join(text.split())


def test_of_a_very_long_text_the_beginning_is_looked_at_and_the_rest_counts_as_cut():
    found = snippet('Tower. ' + 'x' * 2 * MOST_CHARS + ' tower.', 'tower', 100, splitter())
    assert found == 'Tower. …'


@pytest.mark.parametrize(
    'value, text',
    [
        (None, ''),
        ('a', 'a'),
        (7, '7'),
        (True, ''),
        ({'x': 1}, ''),
        (['a', None, 'b'], 'a b'),
        ([['a']], ''),
    ],
)
def test_fields_that_should_be_text(value, text):
    assert as_text(value) == text


def test_titles_are_short_and_never_none():
    assert (
        as_title('a\n b') == 'a b'
        and len(as_title('t' * 9_000)) == 300
        and as_title('t' * 9_000).endswith('…')
    )
    passage = Passage(title=None, text='x', score=1)
    assert passage.title == '' and Passage(title='t' * 9_000, text='x', score=1).title == as_title(
        't' * 9_000
    )
    image = {'sha256': 'a' * 64, 'width': 1, 'height': 1}
    assert Match(title=None, thumbnail=image, score=1).title == ''


@pytest.mark.parametrize(
    'reply', [' ' * 200_000 + '<think>', ' ' * 200_000 + 'x', '<think>' * 50_000, '"' * 200_000]
)
def test_a_reply_of_blanks_holds_nobody_up(reply):
    with within(), pytest.raises(ToolError):
        parse_verdict(reply)


def test_reasoning_before_a_verdict_is_skipped():
    assert parse_verdict(' \n<think> No </think> hm </think>\n Yes. ') is True
    with pytest.raises(ToolError):
        parse_verdict('<think> Yes')
