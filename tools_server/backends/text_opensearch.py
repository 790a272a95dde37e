"""Text search in an OpenSearch index: BM25 over title and text, for corpora that outgrow a machine."""

from __future__ import annotations

import base64
import os
from typing import Any

from tools_server import degraded
from tools_server.backend_config import OpenSearch
from tools_server.backends.found import each
from tools_server.backends.http_service import Service
from tools_server.backends.summarise import ExtractiveSummariser
from tools_server.failures import ToolError
from tools_server.schemas import Passage
from tools_server.text_forms import as_text


class OpenSearchTextSearch:
    """`POST /{index}/_search` with a multi_match query; the hits in their order."""

    name = 'opensearch'

    def __init__(self, config: OpenSearch):
        self._config = config
        self._service = Service(
            'OpenSearch', config.base_url, config.timeout_s, _credentials(config), config.limits
        )
        self.services = (self._service,)
        self._extract = ExtractiveSummariser()

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `backends.TextSearch.search`."""
        if not query.strip():
            return []
        fields = [
            f'{self._config.title_field}^{self._config.title_boost:g}',
            self._config.text_field,
        ]
        body = {
            'size': top_k,
            '_source': [self._config.title_field, self._config.text_field],
            'query': {'multi_match': {'query': query, 'fields': fields, 'type': 'most_fields'}},
        }
        answer = self._service.post(f'/{self._config.index}/_search', body, ('hits',))
        if answer.get('timed_out') is True:
            raise ToolError(
                'timeout', 'OpenSearch ran out of time and sent only part of the results'
            )
        shards = answer.get('_shards')
        if isinstance(shards, dict) and shards.get('failed'):
            degraded.note('some shards of the OpenSearch index did not answer')
        hits = answer.get('hits')
        results = hits.get('hits') if isinstance(hits, dict) else None
        if not isinstance(results, list):
            raise ToolError('unavailable', 'OpenSearch sent results of an unknown form')
        return each(
            results[:top_k], lambda rank, hit: self._passage(query, hit), self._service.name
        )

    def _passage(self, query: str, hit: Any) -> Passage:
        source = hit['_source']
        text = as_text(source.get(self._config.text_field))
        text = self._extract.summarise(query, text, self._config.max_chars)
        return Passage(
            title=source.get(self._config.title_field), text=text, score=float(hit['_score'])
        )


def _credentials(config: OpenSearch) -> dict[str, str]:
    if config.api_key_env is None:
        return {}
    secret = os.environ[config.api_key_env]
    if config.user is None:
        return {'Authorization': f'ApiKey {secret}'}
    return {
        'Authorization': 'Basic ' + base64.b64encode(f'{config.user}:{secret}'.encode()).decode()
    }
