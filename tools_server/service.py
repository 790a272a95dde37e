"""The tools themselves, without HTTP: which back end answers, what is cached, how long it took."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tools_server.backends import ImageSearch, Judge, TextSearch
from tools_server.cache import Cache
from tools_server.config import (
    LocalImages,
    LocalText,
    ModelJudgeConfig,
    RuleJudgeConfig,
    SerperLens,
    SerperText,
    ServerConfig,
)
from tools_server.failures import ToolError
from tools_server.images import Box, ImageStore, StoredImage
from tools_server.schemas import Match, Passage

T = TypeVar('T')
log = logging.getLogger('tools_server')


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A tool's result and who gave it."""

    value: T
    backend: str
    cache_hit: bool


class ToolService:
    """All tools behind plain methods that may be called from many threads.

    Args:
        config: what to serve. Nothing is loaded before `load`.
    """

    def __init__(self, config: ServerConfig):
        self._config = config
        self.images = ImageStore(config.images)
        self._backends: dict[str, Any] = {}
        self._caches = {
            tool: Cache(config.cache_entries) for tool in ('text_search', 'image_search', 'judge')
        }
        self._loaded = threading.Event()

    @property
    def ready(self) -> bool:
        return self._loaded.is_set()

    def load(self) -> None:
        """Builds the back ends and their indexes.

        Raises:
            ConfigError: the data that the configuration names cannot be used.
        """
        self._backends = {
            'text_search': _text_search(self._config.text_search),
            'image_search': _image_search(self._config.image_search, self.images),
            'judge': _judge(self._config.judge),
        }
        self._loaded.set()

    def close(self) -> None:
        """Removes what was kept for this process only."""
        self.images.close()

    def backends(self) -> dict[str, str]:
        """Tool to the name of its back end; 'none' where a tool is not configured."""
        names = {tool: getattr(backend, 'name', 'none') for tool, backend in self._backends.items()}
        return names | {'crop': 'local'}

    def statistics(self) -> dict[str, dict[str, int]]:
        """Entries, hits and misses of every cache."""
        return {tool: cache.statistics() for tool, cache in self._caches.items()} | self.images.statistics()

    def upload(self, data: bytes) -> Reply[StoredImage]:
        return Reply(*_with_name(self.images.add(data)))

    def crop(self, sha256: str, box: Box) -> Reply[StoredImage]:
        return Reply(*_with_name(self.images.crop(sha256, box)))

    def text_search(self, query: str, top_k: int) -> Reply[list[Passage]]:
        backend: TextSearch = self._backend('text_search')
        return self._cached('text_search', backend.name, (query, top_k), lambda: backend.search(query, top_k))

    def image_search(self, sha256: str, top_k: int) -> Reply[list[Match]]:
        backend: ImageSearch = self._backend('image_search')
        image = self.images.get(sha256)
        return self._cached(
            'image_search', backend.name, (sha256, top_k), lambda: backend.search(image, top_k)
        )

    def judge(self, question: str, references: list[str], response: str, sha256: str | None) -> Reply[bool]:
        backend: Judge = self._backend('judge')
        image = self.images.get(sha256) if sha256 is not None else None
        key = (question, tuple(references), response, sha256)
        return self._cached(
            'judge', backend.name, key, lambda: backend.judge(question, references, response, image)
        )

    def _backend(self, tool: str) -> Any:
        if not self.ready:
            raise ToolError('unavailable', 'the server is still loading its indexes')
        backend = self._backends[tool]
        if backend is None:
            raise ToolError('unavailable', f"the server's configuration has no {tool}")
        return backend

    def _cached(self, tool: str, name: str, key: Hashable, compute: Callable[[], T]) -> Reply[T]:
        value, hit = self._caches[tool].get_or_compute(key, compute)
        return Reply(value, name, hit)


def _with_name(result: tuple[StoredImage, bool]) -> tuple[StoredImage, str, bool]:
    image, known = result
    return image, 'local', known


# A back end's libraries are imported only where it is configured: one that serves the web needs no index
# library.
def _text_search(config: LocalText | SerperText | None) -> TextSearch | None:
    if isinstance(config, LocalText):
        from tools_server.backends.text_local import LocalTextSearch

        return LocalTextSearch(config)
    if isinstance(config, SerperText):
        from tools_server.backends.text_serper import SerperTextSearch

        return SerperTextSearch(config)
    return None


def _image_search(config: LocalImages | SerperLens | None, store: ImageStore) -> ImageSearch | None:
    if isinstance(config, LocalImages):
        from tools_server.backends.image_local import LocalImageSearch

        return LocalImageSearch(config, store)
    if isinstance(config, SerperLens):
        from tools_server.backends.image_serper import SerperImageSearch

        return SerperImageSearch(config, store)
    return None


def _judge(config: RuleJudgeConfig | ModelJudgeConfig) -> Judge:
    if isinstance(config, ModelJudgeConfig):
        from tools_server.backends.judge_openai import ModelJudge

        return ModelJudge(config)
    from tools_server.backends.judge_rules import RuleJudge

    return RuleJudge()
