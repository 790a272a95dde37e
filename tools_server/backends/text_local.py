"""Text search on this machine: over passages indexed at the start, or an index on disk."""

from __future__ import annotations

import hashlib

import tantivy

from tools_server.backend_config import IndexedText, LocalText
from tools_server.backends import text_analysis, text_bm25
from tools_server.config import ConfigError


class LocalTextSearch(text_bm25.BM25):
    """BM25 over passages that are indexed in memory at the start.

    Args:
        config: the passages, the longest text of a result, and the weight of titles.

    Raises:
        ConfigError: the passages cannot be read.
    """

    name = 'local'
    services = ()

    def __init__(self, config: LocalText):
        index = tantivy.Index(text_bm25.schema())
        index.register_tokenizer(text_analysis.NAME, text_analysis.analyser())
        writer = index.writer(heap_size=64_000_000, num_threads=1)
        self._size = 0
        content = hashlib.sha256()
        for title, text in text_bm25.read_passages(config.passages):
            content.update(
                f'{len(title)} {title}{len(text)} {text}'.encode('utf-8', 'surrogatepass')
            )
            writer.add_document(text_bm25.document(title, text, self._size))
            self._size += 1
        self.fingerprint = content.hexdigest()
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        super().__init__(index, config.max_chars, config.title_boost)

    def __len__(self) -> int:
        return self._size


class IndexedTextSearch(text_bm25.BM25):
    """BM25 over an index on disk, which the operating system keeps in memory as far as there is
    room.

    Raises:
        ConfigError: no index that `python -m tools_server.build_index text` finished.
    """

    name = 'index'
    services = ()

    def __init__(self, config: IndexedText):
        try:
            index = tantivy.Index.open(str(config.index))
            # The names of segments, which tantivy draws at random and never writes again.
            self.fingerprint = hashlib.sha256((config.index / 'meta.json').read_bytes()).hexdigest()
        except (OSError, ValueError):
            raise ConfigError(
                f'{config.index} is no text index; build one with python -m tools_server.build_index text'
            ) from None
        if not index.searcher().num_docs:
            raise ConfigError(
                f'the text index {config.index} is empty or was not finished; build it again'
            )
        super().__init__(index, config.max_chars, config.title_boost)
