"""Text search by a retriever with the interface of Search-R1 (arXiv 2503.09516)."""

from __future__ import annotations

from typing import Any

from tools_server.backend_config import Retriever
from tools_server.backends.found import each
from tools_server.backends.http_service import Service, bearer
from tools_server.backends.summarise import ExtractiveSummariser
from tools_server.backends.text_bm25 import split_contents
from tools_server.failures import ToolError
from tools_server.schemas import Passage
from tools_server.text_forms import as_text


class RetrieverTextSearch:
    """`POST /retrieve {queries, topk, return_scores}`; per query a list of documents with scores."""

    name = 'retriever'

    def __init__(self, config: Retriever):
        headers = bearer(config.api_key_env)
        self._service = Service(
            'the retriever', config.base_url, config.timeout_s, headers, config.limits
        )
        self.services = (self._service,)
        self._max_chars = config.max_chars
        self._extract = ExtractiveSummariser()

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `backends.TextSearch.search`."""
        if not query.strip():
            return []
        body = {'queries': [query], 'topk': top_k, 'return_scores': True}
        answer = self._service.post('/retrieve', body, ('result',)).get('result')
        if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], list):
            raise ToolError('unavailable', 'the retriever sent results of an unknown form')
        return each(
            answer[0][:top_k],
            lambda rank, item: self._passage(query, rank, item),
            self._service.name,
        )

    def _passage(self, query: str, rank: int, item: Any) -> Passage:
        """A result: {document: {contents}, score}, or the document alone."""
        document = item.get('document', item)
        if 'contents' in document:
            title, text = split_contents(as_text(document['contents']))
        else:
            title, text = document.get('title'), as_text(document['text'])
        score = float(item.get('score', 1 / (1 + rank)))
        return Passage(
            title=title, text=self._extract.summarise(query, text, self._max_chars), score=score
        )
