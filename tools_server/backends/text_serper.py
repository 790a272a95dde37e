"""Text search on the web by Serper, with the pages behind the results summarised where a summariser is
configured."""

from __future__ import annotations

from typing import Any

from tools_server.backends import Summariser
from tools_server.backends.openai_compatible import ChatModel
from tools_server.backends.outbound import serper_service
from tools_server.backends.pages import fetch, text_of
from tools_server.backends.summarise import ExtractiveSummariser, ModelSummariser
from tools_server.config import SerperText
from tools_server.failures import ToolError
from tools_server.schemas import Passage


class SerperTextSearch:
    """`POST /search {q, num}`; the organic results in their order."""

    name = 'serper'

    def __init__(self, config: SerperText):
        self._config = config
        self._service = serper_service(config.base_url, config.api_key_env, config.timeout_s)
        self._extract = ExtractiveSummariser()
        self._summariser: Summariser | None = None
        if config.summariser == 'extractive':
            self._summariser = self._extract
        elif config.summariser is not None:
            self._summariser = ModelSummariser(ChatModel(config.summariser))

    def search(self, query: str, top_k: int) -> list[Passage]:
        if not query.strip():
            return []
        answer = self._service.post('/search', {'q': query, 'num': top_k})
        results = answer.get('organic', [])
        if not isinstance(results, list):
            raise ToolError('unavailable', 'Serper sent results of an unknown form')
        passages = []
        for rank, result in enumerate(results[:top_k]):
            if isinstance(result, dict):
                text = self._text(query, result)
                passages.append(Passage(title=str(result.get('title', '')), text=text, score=1 / (1 + rank)))
        return passages

    def _text(self, query: str, result: dict[str, Any]) -> str:
        """A summary of the page, or the search engine's own excerpt where the page gives none."""
        excerpt = str(result.get('snippet', ''))
        if self._summariser is not None and result.get('link'):
            try:
                page = fetch(str(result['link']), self._config.timeout_s, self._config.allow_private_pages)
                text = text_of(page)
                if text:
                    return self._summariser.summarise(query, text, self._config.max_chars)
            except ToolError:
                pass  # many pages cannot be had; the excerpt is still an answer
        return self._extract.summarise(query, excerpt, self._config.max_chars)
