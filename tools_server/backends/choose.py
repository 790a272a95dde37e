"""The back end that a section of the configuration names.

A back end's libraries are imported only where it is configured: a server that asks the web needs no
index library.
"""

from __future__ import annotations

from typing import Any

from tools_server import backend_config as sections
from tools_server.config import ConfigError
from tools_server.images import ImageStore


def choose(section: sections.Backend, store: ImageStore, token: str | None) -> Any:
    """Builds a back end.

    Args:
        section: of the configuration.
        store: takes thumbnails.
        token: the server's bearer token, with which addresses of pictures are signed.

    Raises:
        ConfigError: its data cannot be used, or a library that it needs is not installed.
    """
    match section:
        case sections.LocalText():
            from tools_server.backends.text_local import LocalTextSearch

            return LocalTextSearch(section)
        case sections.IndexedText():
            from tools_server.backends.text_local import IndexedTextSearch

            return IndexedTextSearch(section)
        case sections.SerperText():
            from tools_server.backends.text_serper import SerperTextSearch

            return SerperTextSearch(section)
        case sections.Retriever():
            from tools_server.backends.text_retriever import RetrieverTextSearch

            return RetrieverTextSearch(section)
        case sections.OpenSearch():
            from tools_server.backends.text_opensearch import OpenSearchTextSearch

            return OpenSearchTextSearch(section)
        case sections.LocalImages():
            from tools_server.backends.image_local import LocalImageSearch

            return LocalImageSearch(section, store)
        case sections.IndexedImages():
            try:
                from tools_server.backends.image_index import IndexedImageSearch
            except ImportError:
                message = "a picture index needs usearch: pip install 'sensesearch_jax[index]'"
                raise ConfigError(message) from None

            return IndexedImageSearch(section, store)
        case sections.PrefetchedImages():
            from tools_server.backends.image_prefetched import PrefetchedImageSearch

            return PrefetchedImageSearch(section, store)
        case sections.SerperLens():
            from tools_server.backends.image_serper import SerperImageSearch

            return SerperImageSearch(section, store, token)
        case sections.ModelJudgeConfig():
            from tools_server.backends.judge_openai import ModelJudge

            return ModelJudge(section)
        case _:
            from tools_server.backends.judge_rules import RuleJudge

            return RuleJudge()
