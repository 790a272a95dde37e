"""Text search over passages on disk: BM25 by tantivy, results cut to what the query asks."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import tantivy

from tools_server.backends import words
from tools_server.backends.snippet import snippet
from tools_server.config import ConfigError, LocalText
from tools_server.schemas import Passage

MOST_WORDS = 64  # of a query; further ones are ignored


class LocalTextSearch:
    """BM25 over title and text.

    The query is split into words exactly as the passages are, and any of them may match: there is no query
    language that a strange query could break.

    Args:
        config: the passages, the longest text of a result, and the weight of titles.

    Raises:
        ConfigError: the passages cannot be read.
    """

    name = 'local'

    def __init__(self, config: LocalText):
        self._config = config
        self._analyser = words.analyser()
        schema = tantivy.SchemaBuilder()
        schema.add_text_field('title', stored=True, tokenizer_name=words.NAME, index_option='freq')
        schema.add_text_field('text', stored=True, tokenizer_name=words.NAME, index_option='freq')
        schema.add_unsigned_field('number', stored=True)
        self._schema = schema.build()
        index = tantivy.Index(self._schema)
        index.register_tokenizer(words.NAME, self._analyser)
        writer = index.writer(heap_size=64_000_000, num_threads=1)
        self._size = 0
        for title, text in read_passages(config.passages):
            writer.add_document(tantivy.Document(title=title, text=text, number=self._size))
            self._size += 1
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._index = index

    def __len__(self) -> int:
        return self._size

    def search(self, query: str, top_k: int) -> list[Passage]:
        terms = list(dict.fromkeys(self._analyser.analyze(query)))[:MOST_WORDS]
        if not terms:
            return []
        clauses = []
        for term in terms:
            title = tantivy.Query.term_query(self._schema, 'title', term, index_option='freq')
            text = tantivy.Query.term_query(self._schema, 'text', term, index_option='freq')
            clauses.append((tantivy.Occur.Should, tantivy.Query.boost_query(title, self._config.title_boost)))
            clauses.append((tantivy.Occur.Should, text))
        searcher = self._index.searcher()
        # A few more than asked for: equal scores are then ordered by place in the corpus, the same in every
        # run.
        hits = searcher.search(tantivy.Query.boolean_query(clauses), limit=2 * top_k + 10).hits
        found = [(round(score, 4), searcher.doc(address)) for score, address in hits]
        found.sort(key=lambda hit: (-hit[0], hit[1]['number'][0]))
        return [
            Passage(
                title=document['title'][0],
                text=snippet(document['text'][0], query, self._config.max_chars, self._analyser.analyze),
                score=score,
            )
            for score, document in found[:top_k]
        ]


def read_passages(path: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each passage in a .jsonl or .jsonl.xz file.

    Raises:
        ConfigError: the file is damaged or a line is not an object with 'title' and 'text'.
    """
    opener = lzma.open if path.suffix == '.xz' else open
    number = 0  # of the line, for messages
    try:
        with opener(path, 'rt', encoding='utf-8') as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = json.loads(line)
                    yield str(record['title']), str(record['text'])
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ConfigError(f"{path}, line {number}: expected an object with 'title' and 'text'") from None
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigError(f'cannot read the passages {path}: {error}') from None
    if number == 0:
        raise ConfigError(f'{path} holds no passages')
