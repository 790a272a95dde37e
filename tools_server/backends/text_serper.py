"""Text search on the web by Serper, with the pages behind the results summarised where a summariser
is configured.
"""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tools_server import degraded
from tools_server.backend_config import SerperText
from tools_server.backends import Summariser
from tools_server.backends.http_service import SERPER_FIELDS, serper_results, serper_service
from tools_server.backends.openai_compatible import ChatModel
from tools_server.backends.summarise import SENTENCES, ExtractiveSummariser, ModelSummariser
from tools_server.failures import ToolError
from tools_server.fetching.fetch import Fetcher
from tools_server.limits import deadline
from tools_server.metrics import Tally
from tools_server.pages.reader import PageReader
from tools_server.schemas import Passage
from tools_server.text_forms import as_text

PAGES_SHARE = 0.8  # of the time that is left, for the pages
MOST_FETCHES = 64  # at once, by all searches: pages that take long must leave room for others


class SerperTextSearch:
    """`POST /search {q, num}`; the organic results in their order.

    Attributes:
        pages: what became of the pages behind the results.
        summariser: of the pages behind the results; None where only excerpts are shown.
    """

    name = 'serper'

    def __init__(self, config: SerperText):
        self._config = config
        self._service = serper_service(
            config.base_url, config.api_key_env, config.timeout_s, config.limits
        )
        self.services = [self._service]
        self._fetcher = Fetcher(config.timeout_s, config.allow_private_pages)
        self._extract = ExtractiveSummariser()
        self.pages = Tally('fetched', 'failed', 'summarised', 'not_summarised')
        self.summariser: Summariser | None = None
        if config.summariser == 'extractive':
            self.summariser = ExtractiveSummariser(SENTENCES)
        elif config.summariser is not None:
            model = ChatModel(config.summariser)
            self.summariser = ModelSummariser(model)
            self.services.append(model.service)
        self._reader = None if self.summariser is None else PageReader()
        # Pages of one search are fetched side by side, and those of all searches within one bound.
        self._fetching = ThreadPoolExecutor(MOST_FETCHES, thread_name_prefix='pages')

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `backends.TextSearch.search`."""
        if not query.strip():
            return []
        answer = self._service.post('/search', {'q': query, 'num': top_k}, SERPER_FIELDS)
        results = (_direct(answer) + serper_results(answer))[:top_k]
        # A fifth of the time is kept back, so that slow pages cost their summaries and not the
        # search.
        with deadline.within(PAGES_SHARE * deadline.left()):
            texts = [
                self._fetching.submit(
                    contextvars.copy_context().run, self._text, query, rank, result
                )
                for rank, result in enumerate(results)
            ]
            passages = []
            for rank, (result, text) in enumerate(zip(results, texts, strict=True)):
                try:
                    shown = text.result(min(max(0.0, deadline.left()), threading.TIMEOUT_MAX))
                except TimeoutError:
                    text.cancel()
                    degraded.note(f'result {rank + 1} is an excerpt: its page was not read in time')
                    shown = self._excerpt(query, result)
                passages.append(
                    Passage(title=result.get('title'), text=shown, score=1 / (1 + rank))
                )
        return passages

    def close(self) -> None:
        """Ends the workers that read pages; starts no more fetches."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            self._reader.close()

    def _text(self, query: str, rank: int, result: dict[str, Any]) -> str:
        """A summary of the page, or the search engine's own excerpt where the page gives none."""
        link = as_text(result.get('link'))
        if self._reader is not None and self.summariser is not None and link:
            text = self._page(rank, link)
            if text:
                try:
                    summary = self.summariser.summarise(query, text, self._config.max_chars)
                except ToolError as error:
                    self.pages.add('not_summarised')
                    degraded.note(
                        f'result {rank + 1} is an excerpt: its page was not summarised: {error.message}'
                    )
                else:
                    self.pages.add('summarised')
                    return summary
        return self._excerpt(query, result)

    def _page(self, rank: int, url: str) -> str:
        """The text of a page; '' for one that cannot be had, as many cannot."""
        text, problem, lasting = '', 'it holds no text', True
        try:
            text = self._reader.text(*self._fetcher.fetch(url))
        except ToolError as error:
            problem, lasting = error.message, error.kind == 'refused'
        self.pages.add('fetched' if text else 'failed')
        if not text:
            degraded.note(
                f'result {rank + 1} is an excerpt: its page was not read: {problem}',
                lasting=lasting,
            )
        return text

    def _excerpt(self, query: str, result: dict[str, Any]) -> str:
        return self._extract.summarise(
            query, as_text(result.get('snippet')), self._config.max_chars
        )


def _direct(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Results that Google gives itself, above the pages: its answer, and its box about the subject."""
    found = []
    if isinstance(box := answer.get('answerBox'), dict):
        text = box.get('answer') or box.get('snippet')
        if isinstance(text, str):
            found.append({'title': box.get('title') or '', 'snippet': text})
    if isinstance(graph := answer.get('knowledgeGraph'), dict):
        attributes = graph.get('attributes')
        facts = attributes.items() if isinstance(attributes, dict) else ()
        lines = [
            graph.get('type'),
            graph.get('description'),
            *(f'{name}: {value}' for name, value in facts),
        ]
        text = '\n'.join(line for line in lines if isinstance(line, str) and line)
        if text:
            found.append({'title': graph.get('title') or '', 'snippet': text})
    return found
