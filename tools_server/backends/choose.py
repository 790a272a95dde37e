"""The back end that a section of the configuration names.

A back end's libraries are imported only where it is configured: a server that asks the web needs no
index library.
"""

from __future__ import annotations

import importlib
from typing import Any

from tools_server import backend_config as sections
from tools_server.config import ConfigError
from tools_server.images import ImageStore

# Section -> module of this package and class in it; imported when it is chosen.
BACKENDS = {
    sections.LocalText: ('text_local', 'LocalTextSearch'),
    sections.IndexedText: ('text_local', 'IndexedTextSearch'),
    sections.SerperText: ('text_serper', 'SerperTextSearch'),
    sections.Retriever: ('text_retriever', 'RetrieverTextSearch'),
    sections.OpenSearch: ('text_opensearch', 'OpenSearchTextSearch'),
    sections.LocalImages: ('image_local', 'LocalImageSearch'),
    sections.IndexedImages: ('image_index', 'IndexedImageSearch'),
    sections.PrefetchedImages: ('image_prefetched', 'PrefetchedImageSearch'),
    sections.SerperLens: ('image_serper', 'SerperImageSearch'),
    sections.ModelJudgeConfig: ('judge_openai', 'ModelJudge'),
    sections.RuleJudgeConfig: ('judge_rules', 'RuleJudge'),
}


def choose(section: sections.Backend, store: ImageStore, token: str | None) -> Any:
    """Builds a back end.

    Args:
        section: of the configuration.
        store: takes thumbnails.
        token: the server's bearer token, with which addresses of pictures are signed.

    Raises:
        ConfigError: its data cannot be used, or a library that it needs is not installed.
    """
    module, name = BACKENDS[type(section)]
    try:
        kind = getattr(importlib.import_module(f'tools_server.backends.{module}'), name)
    except ImportError:
        if not isinstance(section, sections.IndexedImages):
            raise
        message = "a picture index needs usearch: pip install 'sensesearch_jax[index]'"
        raise ConfigError(message) from None
    match section:
        case sections.RuleJudgeConfig():
            return kind()
        case sections.SerperLens():
            return kind(section, store, token)
        case sections.LocalImages() | sections.IndexedImages() | sections.PrefetchedImages():
            return kind(section, store)
    return kind(section)
