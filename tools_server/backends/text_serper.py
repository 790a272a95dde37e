"""Text search on the web by Serper, with the pages behind the results summarised where a summariser is
configured."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tools_server import degraded
from tools_server.backend_config import SerperText
from tools_server.backends import Summariser
from tools_server.backends.openai_compatible import ChatModel
from tools_server.backends.outbound import SERPER_FIELDS, serper_results, serper_service
from tools_server.backends.pages import text_of
from tools_server.backends.summarise import SENTENCES, ExtractiveSummariser, ModelSummariser
from tools_server.failures import ToolError
from tools_server.fetching.fetch import Fetcher
from tools_server.limits import deadline
from tools_server.metrics import Tally
from tools_server.schemas import Passage

PAGES_SHARE = 0.8  # of the time that is left, for the pages


class SerperTextSearch:
    """`POST /search {q, num}`; the organic results in their order.

    Attributes:
        pages: what became of the pages behind the results.
        summariser: of the pages behind the results; None where only excerpts are shown.
    """

    name = 'serper'

    def __init__(self, config: SerperText):
        self._config = config
        self._service = serper_service(config.base_url, config.api_key_env, config.timeout_s, config.limits)
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
        # Pages of one search are read side by side, and those of all searches within one bound.
        self._readers = ThreadPoolExecutor(config.limits.concurrency, thread_name_prefix='pages')

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `backends.TextSearch.search`."""
        if not query.strip():
            return []
        answer = self._service.post('/search', {'q': query, 'num': top_k}, SERPER_FIELDS)
        results = (_direct(answer) + serper_results(answer))[:top_k]
        # A fifth of the time is kept back, so that slow pages cost their summaries and not the search.
        with deadline.within(PAGES_SHARE * deadline.left()):
            texts = [
                self._readers.submit(contextvars.copy_context().run, self._text, query, result)
                for result in results
            ]
            passages = []
            for rank, (result, text) in enumerate(zip(results, texts, strict=True)):
                try:
                    shown = text.result(min(max(0.0, deadline.left()), threading.TIMEOUT_MAX))
                except TimeoutError:
                    text.cancel()
                    degraded.note('some pages were not read in time')
                    shown = self._excerpt(query, result)
                passages.append(Passage(title=str(result.get('title', '')), text=shown, score=1 / (1 + rank)))
        return passages

    def _text(self, query: str, result: dict[str, Any]) -> str:
        """A summary of the page, or the search engine's own excerpt where the page gives none."""
        if self.summariser is not None and result.get('link'):
            text = self._page(str(result['link']))
            if text:
                try:
                    summary = self.summariser.summarise(query, text, self._config.max_chars)
                except ToolError as error:
                    self.pages.add('not_summarised')
                    degraded.note(f'some pages were not summarised: {error.message}')
                else:
                    self.pages.add('summarised')
                    return summary
        return self._excerpt(query, result)

    def _page(self, url: str) -> str:
        """The text of a page; '' for one that cannot be had, as many cannot."""
        try:
            text = text_of(self._fetcher.fetch(url))
        except ToolError as error:
            self.pages.add('failed')
            if error.kind != 'refused':  # which it will be tomorrow as well
                degraded.note(f'some pages were not read: {error.message}')
            return ''
        self.pages.add('fetched')
        return text

    def _excerpt(self, query: str, result: dict[str, Any]) -> str:
        return self._extract.summarise(query, str(result.get('snippet', '')), self._config.max_chars)


def _direct(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What Google says itself, above the pages: its answer, and its box about the subject."""
    found = []
    if isinstance(box := answer.get('answerBox'), dict):
        text = box.get('answer') or box.get('snippet')
        if isinstance(text, str):
            found.append({'title': box.get('title') or '', 'snippet': text})
    if isinstance(graph := answer.get('knowledgeGraph'), dict):
        attributes = graph.get('attributes')
        facts = attributes.items() if isinstance(attributes, dict) else ()
        lines = [graph.get('type'), graph.get('description'), *(f'{name}: {value}' for name, value in facts)]
        text = '\n'.join(line for line in lines if isinstance(line, str) and line)
        if text:
            found.append({'title': graph.get('title') or '', 'snippet': text})
    return found
