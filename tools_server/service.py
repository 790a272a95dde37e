"""The tools themselves, without HTTP: which back end answers, what is kept, what is counted."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily

from tools_server.answer_matching.gold import gold_fault
from tools_server.backend_config import Backend, ModelJudgeConfig, Remote
from tools_server.backends.choose import choose
from tools_server.config import ConfigError, ServerConfig
from tools_server.failures import ToolError
from tools_server.images import Box, ImageStore, StoredImage
from tools_server.limits.thread_pool import ThreadPool
from tools_server.metrics import Metrics
from tools_server.response_cache.behind import LOOK_S, WriteBehind
from tools_server.response_cache.modes import Answers
from tools_server.response_cache.reader import Reader, StoreError, open_recording
from tools_server.response_cache.sources import Source, note, noted_key
from tools_server.response_cache.store import AnswerStore
from tools_server.schemas import Image, Match, Passage
from tools_server.tool_runner import CachingToolRunner, Reply, ToolRunner

TOOLS = ('text_search', 'image_search', 'judge')
KEPT = {'replay': 'recording', 'offline': 'cache'}  # names of back ends that are not asked


class ToolService:
    """All tools behind plain coroutines.

    Args:
        config: what to serve. Nothing is loaded before `load`.

    Raises:
        ConfigError: the file of answers cannot be used.
    """

    def __init__(self, config: ServerConfig):
        self._config = config
        self.metrics = Metrics()
        self.images = ImageStore(config.images)
        self._store = _open_store(config)
        self._backends: dict[str, Any] = {}
        self._runners: dict[str, ToolRunner] = {
            'upload': self._runner('upload', config.images.decoders),
            # What needs a worker, and may keep it busy for seconds, must not hold up ordinary
            # uploads.
            'decode': self._runner('decode', config.images.decoders),
            'image': self._runner('image', config.threads),
            'crop': self._runner('crop', config.threads),
        }
        self._loaded = threading.Event()
        watch = self.metrics.watch
        watch('tools_now', 'Calls at work and waiting, by tool', self._now)
        watch('tools_cache', 'Entries, hits and misses, by tool', self.cache_statistics)
        watch('tools_services', 'State of services elsewhere', self.service_statistics)
        pages = 'Web pages read and summarised, by tool'
        watch('tools_pages', pages, self.page_statistics, CounterMetricFamily)

    @property
    def ready(self) -> bool:
        """Whether `load` is done."""
        return self._loaded.is_set()

    @property
    def mode(self) -> str:
        """'live', 'record', 'replay' or 'offline'."""
        return self._config.mode

    def load(self) -> None:
        """Builds the back ends and their indexes.

        Raises:
            ConfigError: the data that the configuration names cannot be used.
        """
        for tool in TOOLS:
            section = getattr(self._config, tool)
            if section is None:
                continue
            # What this mode never asks is not loaded: it needs neither keys nor, in a replay, data.
            asked = not (
                self.mode == 'replay' or (self.mode == 'offline' and isinstance(section, Remote))
            )
            backend = choose(section, self.images, self._config.token()) if asked else None
            self._backends[tool] = backend
            name = backend.name if asked else KEPT[self.mode]
            data = getattr(backend, 'fingerprint', '')
            self._runners[tool] = self._caching_runner(
                tool, section, name, self._source(tool, section, data)
            )
        self._loaded.set()

    def close(self) -> None:
        """Starts no more calls, and removes what was kept for this process only."""
        for runner in self._runners.values():
            runner.close()
        for backend in self._backends.values():
            if (close := getattr(backend, 'close', None)) is not None:
                close()
        if self._store is not None:
            self._store.close()
        self.images.close()

    def backends(self) -> dict[str, str]:
        """Tool to the name of its back end; 'none' where a tool is not configured."""
        names = {
            tool: self._runners[tool].backend if tool in self._runners else 'none' for tool in TOOLS
        }
        return names | {'crop': 'local'}

    def backend(self, tool: str) -> Any | None:
        """The back end itself, once loaded; None without one."""
        return self._backends.get(tool)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Calls by outcome, at work and waiting, of every tool."""
        return {name: runner.statistics() for name, runner in list(self._runners.items())}

    def cache_statistics(self) -> dict[str, dict[str, int]]:
        """Entries, hits and misses of every cache, and the size of the file of answers."""
        tools = {
            n: runner.cache_statistics()
            for n, runner in list(self._runners.items())
            if isinstance(runner, CachingToolRunner)
        }
        empty = {
            tool: {'entries': 0, 'hits': 0, 'misses': 0} for tool in TOOLS if tool not in tools
        }
        disk = {}
        if self._store is not None:
            try:
                disk = {'answers': self._store.statistics()}
            except StoreError:
                pass  # a health page that fails helps nobody; calls say what is wrong
        return empty | tools | self.images.statistics() | disk

    def service_statistics(self) -> dict[str, dict[str, int]]:
        """Breaker and retries of every service elsewhere."""
        found: dict[str, dict[str, int]] = {}
        for tool, backend in list(self._backends.items()):
            for service in getattr(backend, 'services', ()):
                found[f'{tool}: {service.name}'] = service.limits.statistics()
        return found

    def page_statistics(self) -> dict[str, dict[str, int]]:
        """Counts of the web pages that each tool fetched, failed to fetch and summarised."""
        tallies = {
            tool: getattr(backend, 'pages', None) for tool, backend in list(self._backends.items())
        }
        return {tool: tally.counts() for tool, tally in tallies.items() if tally is not None}

    # Every call may also fail as `ThreadPool.run` says: 'timeout' at the deadline, 'unavailable'
    # when too many calls wait.

    async def upload(self, data: bytes) -> Reply[StoredImage]:
        """Keeps an image file; see `ImageStore.add`.

        Raises:
            ToolError: 'caller'; it is no sound image, or too large.
        """
        # let go of when the call is given up, however long its place in the queue remains
        held = [data]

        async def call() -> tuple[StoredImage, bool, tuple[str, ...]]:
            try:
                image, known = await self._runners['upload'].work(
                    lambda: self.images.add(held[0], workers=False)
                )
                if image is None:
                    image, known = await self._runners['decode'].work(
                        lambda: self.images.add(held[0])
                    )
                return image, known, ()
            finally:
                held.clear()

        return await self._runners['upload'].counted(call)

    async def image(self, sha256: str, bare: bool = False) -> Reply[bytes]:
        """The file of an image: JPEG or PNG, upright, RGB; `bare` without camera data, place or
        text in it.

        Raises:
            ToolError: 'caller'; there is no such image.
        """
        read = self.images.bare if bare else self.images.encoded
        return await self._runners['image'].run(
            lambda: (read(self.images.get(sha256).sha256), True)
        )

    async def crop(self, sha256: str, box: Box) -> Reply[StoredImage]:
        """Cuts a part out of an image; `box` is x0, y0, x1, y1 as fractions of it.

        Raises:
            ToolError: 'caller'; there is no such image, or the part has a side below 28 pixels.
        """
        return await self._runners['crop'].run(lambda: self.images.crop(sha256, box))

    async def text_search(self, query: str, top_k: int) -> Reply[list[Passage]]:
        """At most `top_k` passages for a query of any wording, best first.

        Raises:
            ToolError: the back end's; 'unavailable' without one.
        """
        tool, backend = self._chosen('text_search')
        request = {'query': query, 'top_k': top_k}
        return await tool.ask(request, lambda: backend.search(query, top_k))

    async def image_search(self, sha256: str, top_k: int) -> Reply[list[Match]]:
        """At most `top_k` known pictures that look like an image or something large in it, best
        first.

        Raises:
            ToolError: 'caller' for an unknown image; the back end's; 'unavailable' without one.
        """
        tool, backend = self._chosen('image_search')
        image = self._image(tool, sha256)
        request = {'image': sha256, 'top_k': top_k}
        return await tool.ask(request, lambda: backend.search(image, top_k), self._holds)

    def _holds(self, matches: list[Match]) -> bool:
        """Whether the thumbnails of an answer are still there; they count as used."""
        return all([self.images.folder.has(match.thumbnail.sha256) for match in matches])

    async def judge(
        self,
        question: str,
        references: list[str],
        response: str,
        images: Sequence[str] = (),
        choices: list[str] | None = None,
    ) -> Reply[bool]:
        """Whether a response answers the question as one of the references does.

        Args:
            question: as it was asked.
            references: right answers, or with `choices` their letters or texts.
            response: the text that is judged.
            images: hashes of those that the question is about; models that take images see them.
            choices: the options A, B, … in order; then only the option counts.

        Raises:
            ToolError: 'caller' for an unknown image, and for references by which no response can be
                right; the back end's, also where it gives no clear verdict.
        """
        tool, backend = self._chosen('judge')
        if not (isinstance(self._config.judge, ModelJudgeConfig) and self._config.judge.images):
            images = ()  # rules and text models look at none, which need not be here either
        stored = [self._image(tool, sha256) for sha256 in images]
        request = {
            'question': question,
            'references': references,
            'response': response,
            'images': list(images),
        }
        request['choices'] = choices

        def judged() -> bool:
            # Here, on the tool's thread: long references take a while to compare with long choices.
            if (fault := gold_fault(references, choices or [])) is not None:
                raise ToolError('caller', f'no response can be judged: {fault}')
            return backend.judge(question, references, response, stored, choices or [])

        return await tool.ask(request, judged)

    def _image(self, tool: ToolRunner, sha256: str) -> StoredImage:
        """The image that a call of the tool names; the failure is counted as the call's."""
        try:
            return self.images.get(sha256)
        except ToolError as error:
            tool.count(error.kind, 0.0, said={'reason': error.message})
            error.backend, error.counted = tool.backend, True
            raise

    def count(self, method: str, path: str, outcome: str, seconds: float, reason: str) -> None:
        """Counts a request that came to no tool: a wrong one, or one that came too late.

        Args:
            method: of HTTP.
            path: of the request, which names the tool.
            outcome: a failure kind.
            seconds: since it came in.
            reason: a sentence for the log.
        """
        name = path.split('/')[1]
        if name == 'images':
            name = 'upload' if method == 'POST' else 'image'
        if (runner := self._runners.get(name)) is not None:
            runner.count(outcome, seconds, said={'reason': reason})
        else:
            self.metrics.observe('other', 'none', outcome, False, seconds)

    def _chosen(self, name: str) -> tuple[CachingToolRunner, Any]:
        if not self.ready:
            raise ToolError(
                'unavailable', 'the server is still loading its indexes', retry_after_s=1.0
            )
        tool = self._runners.get(name)
        if not isinstance(tool, CachingToolRunner):
            raise ToolError('unavailable', f"the server's configuration has no {name}")
        return tool, self._backends[name]

    def _runner(self, name: str, threads: int) -> ToolRunner:
        return ToolRunner(
            name, 'local', ThreadPool(name, threads, self._config.queue), self.metrics
        )

    def _source(self, tool: str, section: Backend, data: str) -> dict[str, Any]:
        """The back end's part of its answers' keys; `data` is the fingerprint of its data."""
        source = Source(section.identity(), section.place(), data)
        try:
            if self.mode == 'replay':
                return noted_key(self._store, tool, source.settings, source.place)
            if self.mode == 'record':
                note(self._store, tool, source)
        except StoreError as error:
            raise ConfigError(f'answers.path: {error}') from None
        return source.key()

    def _caching_runner(
        self, name: str, section: Any, backend: str, source: dict[str, Any]
    ) -> CachingToolRunner:
        write, read = self._forms()[name]
        online, config = isinstance(section, Remote), self._config
        answers = Answers(name, source, online, self.mode, config.answers, self._store, write, read)
        pool = ThreadPool(name, config.threads, config.queue)
        return CachingToolRunner(name, backend, pool, self.metrics, config.cache_entries, answers)

    def _forms(self) -> dict[str, tuple[Any, Any]]:
        """Forms of each tool's results in the file of answers: a writer and a reader."""
        return {
            'text_search': (
                lambda passages: [passage.model_dump() for passage in passages],
                lambda values: [Passage(**value) for value in values],
            ),
            'image_search': (
                lambda matches: [self._written(match) for match in matches],
                lambda values: [self._read(value) for value in values],
            ),
            'judge': (lambda verdict: verdict, lambda value: value),
        }

    def _written(self, match: Match) -> dict[str, Any]:
        """A match with its thumbnail's file: a recording needs no folder of pictures beside it."""
        data = self.images.encoded(match.thumbnail.sha256)
        return match.model_dump() | {'file': base64.b64encode(data).decode()}

    def _read(self, value: dict[str, Any]) -> Match:
        match = Match(
            title=value['title'], thumbnail=Image(**value['thumbnail']), score=value['score']
        )
        data = base64.b64decode(value['file'])
        self.images.add_encoded(data, match.thumbnail.width, match.thumbnail.height)
        return match

    def _now(self) -> dict[str, dict[str, int]]:
        runners = self._runners.items()
        return {n: {'working': a.pool.working, 'waiting': a.pool.waiting} for n, a in list(runners)}


def _open_store(config: ServerConfig) -> AnswerStore | Reader | WriteBehind | None:
    path, ages = config.answers.path, config.answers
    if path is None or (config.mode == 'offline' and not path.exists()):
        return None
    try:
        # nothing is kept, so the file may lie where nobody can write
        if config.mode in ('replay', 'offline'):
            return open_recording(path)
        # complete or worthless: it neither expires nor loses its oldest part
        if config.mode == 'record':
            return AnswerStore(path)
        return WriteBehind(AnswerStore(path, ages.max_bytes, ages.max_age_s, wait_s=LOOK_S))
    except StoreError as error:
        raise ConfigError(f'answers.path: {error}') from None
