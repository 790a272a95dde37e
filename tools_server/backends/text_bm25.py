"""BM25 by tantivy, results cut to what the query asks; the index lies in memory or on disk."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import tantivy

from tools_server.backends import text_analysis
from tools_server.backends.snippet import snippet
from tools_server.config import ConfigError
from tools_server.schemas import Passage
from tools_server.text_forms import composed

MOST_WORDS = 64  # of a query; further ones are ignored


def schema() -> tantivy.Schema:
    """Title, text and place in the corpus of each passage."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(
        'title', stored=True, tokenizer_name=text_analysis.NAME, index_option='freq'
    )
    builder.add_text_field(
        'text', stored=True, tokenizer_name=text_analysis.NAME, index_option='freq'
    )
    builder.add_unsigned_field('number', stored=True)
    return builder.build()


def document(title: str, text: str, number: int) -> tantivy.Document:
    """A passage in the form of `schema()`.

    Args:
        title: of the passage.
        text: of the passage.
        number: its place in the corpus, from 0.
    """
    return tantivy.Document(title=composed(title), text=composed(text), number=number)


class BM25:
    """Search in an index of title and text.

    The query is split into words exactly as the passages are, and any of them may match: there is
    no query language that a strange query could break.

    Args:
        index: with `schema()`.
        max_chars: longest text of a result.
        title_boost: weight of a word in the title against one in the text.
    """

    def __init__(self, index: tantivy.Index, max_chars: int, title_boost: float):
        index.register_tokenizer(text_analysis.NAME, text_analysis.analyser())
        self._words = text_analysis.splitter()
        self._index = index
        self._schema = schema()
        self._max_chars = max_chars
        self._title_boost = title_boost

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `backends.TextSearch.search`."""
        terms = list(dict.fromkeys(self._words(query)))[:MOST_WORDS]
        if not terms:
            return []
        clauses = []
        for term in terms:
            title = tantivy.Query.term_query(self._schema, 'title', term, index_option='freq')
            text = tantivy.Query.term_query(self._schema, 'text', term, index_option='freq')
            clauses.append(
                (tantivy.Occur.Should, tantivy.Query.boost_query(title, self._title_boost))
            )
            clauses.append((tantivy.Occur.Should, text))
        searcher = self._index.searcher()
        # A few more than asked for: equal scores are then ordered by place in the corpus, the same
        # in every run.
        hits = searcher.search(tantivy.Query.boolean_query(clauses), limit=2 * top_k + 10).hits
        found = [(round(score, 4), searcher.doc(address)) for score, address in hits]
        found.sort(key=lambda hit: (-hit[0], hit[1]['number'][0]))
        return [
            Passage(
                title=passage['title'][0],
                text=snippet(passage['text'][0], query, self._max_chars, self._words),
                score=score,
            )
            for score, passage in found[:top_k]
        ]


def read_passages(
    path: Path, progress: Callable[[int], object] = lambda position: None
) -> Iterator[tuple[str, str]]:
    """Title and text of each passage in a .jsonl or .jsonl.xz file.

    A record has 'title' and 'text', or 'contents' whose first line is the title (the form of
    Search-R1's corpora).

    Args:
        path: the file.
        progress: told how many bytes of it have been read, after each line.

    Raises:
        ConfigError: the file is damaged or a line is no such object.
    """
    number = 0  # of the line, for messages
    try:
        with open(path, 'rb') as file:
            lines = lzma.open(file) if path.suffix == '.xz' else file
            for number, line in enumerate(lines, 1):
                progress(file.tell())
                if line.strip():
                    record = json.loads(line.decode('utf-8'))
                    if 'contents' in record:
                        yield split_contents(str(record['contents']))
                    else:
                        yield str(record['title']), str(record['text'])
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ConfigError(
            f"{path}, line {number}: expected an object with 'title' and 'text'"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigError(f'cannot read the passages {path}: {error}') from None
    if number == 0:
        raise ConfigError(f'{path} holds no passages')


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of Search-R1's 'contents': the title is the first line, often in quotes."""
    title, _, text = contents.partition('\n')
    return title.strip().strip('"'), text.strip()
