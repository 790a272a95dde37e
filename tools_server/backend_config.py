"""The configuration of each back end, as sections of the server's configuration.

Keys of paid services are never in it: it names environment variables.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo
from pydantic.functional_validators import AfterValidator


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return ((info.context or {}).get('base', Path()) / path.expanduser()).resolve()


def _existing(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if not path.exists() and _mode(info) != 'replay':
        raise ValueError(f'there is no file {path}')
    return path


def _key_in_environment(name: str, info: ValidationInfo) -> str:
    # nobody is called then
    if not os.environ.get(name) and _mode(info) not in ('replay', 'offline'):
        raise ValueError(
            f'the environment variable {name} holds no key; set it or choose a local back end'
        )
    return name


def _mode(info: ValidationInfo) -> str:
    return (info.context or {}).get('mode', 'live')


def _http_url(url: str) -> str:
    if not url.startswith(('http://', 'https://')):
        raise ValueError(f'{url!r} is not an http(s) URL')
    return url.rstrip('/')


AnyPath = Annotated[Path, AfterValidator(_resolved)]
ExistingPath = Annotated[Path, AfterValidator(_existing)]
KeyVariable = Annotated[str, AfterValidator(_key_in_environment)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


class Section(BaseModel):
    """A part of the configuration; an unknown field is an error, so that no typo is ignored."""

    model_config = ConfigDict(extra='forbid', frozen=True)


class Limits(Section):
    """Limits within which a service elsewhere is used."""

    concurrency: int = Field(16, ge=1)  # calls at the same time
    per_second: float | None = Field(None, gt=0)  # calls a second on average; null: no limit
    burst: int = Field(1, ge=1)  # calls that may follow each other at once
    attempts: int = Field(3, ge=1)  # of one call, the first included
    # before the second attempt at most, then doubling, in seconds
    retry_pause_s: float = Field(0.2, ge=0)
    # retries as a share of successful calls, beyond a first ten
    retry_share: float = Field(0.2, ge=0, le=1)
    # failures in a row after which the service is left alone
    breaker_failures: int = Field(10, ge=1)
    breaker_pause_s: float = Field(10.0, gt=0)  # for so long


# Fields that say how a back end is reached and not what it answers.
OPERATIONAL = {
    'base_url', 'api_key_env', 'timeout_s', 'limits', 'allow_private_pages', 'public_url',
}  # fmt: skip


class Backend(Section):
    """A back end of a tool."""

    def identity(self) -> dict[str, Any]:
        """The fields that an answer depends on; of a file its name."""
        found: dict[str, Any] = {}
        for name, value in sorted(self):
            if name not in OPERATIONAL:
                value = value.identity() if isinstance(value, Backend) else value
                found[name] = value.name if isinstance(value, Path) else value
        return found

    def place(self) -> list[str]:
        """Addresses of the services that are asked."""
        found = []
        for name, value in sorted(self):
            if name == 'base_url':
                found.append(value)
            elif isinstance(value, Backend):
                found += value.place()
        return found


class Remote(Backend):
    """A back end somewhere else.

    `timeout_s` is the longest time of one attempt, in seconds.
    """

    timeout_s: float = Field(10.0, gt=0)
    limits: Limits = Limits()


class OpenAICompatible(Remote):
    """A chat-completions server."""

    base_url: HttpUrl  # up to and including /v1
    model: str = Field(min_length=1)
    api_key_env: KeyVariable | None = None  # None: the server asks for no key
    timeout_s: float = Field(30.0, gt=0)
    max_tokens: int = Field(512, ge=1)


class LocalText(Backend):
    """BM25 over passages, indexed in memory at every start; for up to some hundred thousand."""

    backend: Literal['local']
    passages: ExistingPath  # .jsonl or .jsonl.xz of {"id", "title", "text"}
    max_chars: int = Field(400, ge=40)  # longest text of a result
    title_boost: float = Field(3.0, gt=0)  # weight of a word in the title against one in the text


class IndexedText(Backend):
    """BM25 over an index on disk, which `python -m tools_server.build_index text` writes."""

    backend: Literal['index']
    index: ExistingPath
    max_chars: int = Field(400, ge=40)
    title_boost: float = Field(3.0, gt=0)


class SerperText(Remote):
    """Google results by Serper; with a summariser, the pages behind them are read and summarised."""

    backend: Literal['serper']
    base_url: HttpUrl = 'https://google.serper.dev'
    api_key_env: KeyVariable = Field('SERPER_API_KEY', validate_default=True)
    max_chars: int = Field(1500, ge=40)
    summariser: OpenAICompatible | Literal['extractive'] | None = None
    # True only for tests: pages on this machine or its network may be read
    allow_private_pages: bool = False


class Retriever(Remote):
    """A retriever with Search-R1's interface: POST {base_url}/retrieve {queries, topk,
    return_scores}.
    """

    backend: Literal['retriever']
    base_url: HttpUrl
    api_key_env: KeyVariable | None = None
    max_chars: int = Field(1500, ge=40)


class OpenSearch(Remote):
    """An OpenSearch (or Elasticsearch) index, for corpora that outgrow a machine."""

    backend: Literal['opensearch']
    base_url: HttpUrl
    index: str = Field(min_length=1, pattern=r'^[^/?#\s]+$')
    title_field: str = 'title'
    text_field: str = 'text'
    title_boost: float = Field(3.0, gt=0)
    user: str | None = None  # for basic authentication; the password comes from `api_key_env`
    api_key_env: KeyVariable | None = None  # without `user`, an API key
    max_chars: int = Field(1500, ge=40)


class PictureSearch(Backend):
    """Fields of both searches in own pictures: which parts of a query picture are compared."""

    upload_side: int = Field(1024, ge=64)  # the query is first shrunk to this long side, in pixels
    # a region whose short side is below this, in pixels, is not looked up
    min_region: int = Field(48, ge=8)
    # nor one that covers less of the query picture than this
    min_share: float = Field(0.0, ge=0, le=1)
    min_similarity: float = Field(0.8, ge=-1, le=1)  # a gallery picture less alike is no match
    thumbnail_side: int = Field(56, ge=8)  # pixels; thumbnails are square


class LocalImages(PictureSearch):
    """Nearest pictures of a gallery, described anew at every start; every picture is compared."""

    backend: Literal['local']
    gallery: ExistingPath  # .jsonl of {"id", "title", "file"}, files relative to it


class IndexedImages(PictureSearch):
    """Nearest pictures in an index on disk, made by `python -m tools_server.build_index images`."""

    backend: Literal['index']
    index: ExistingPath


class PrefetchedImages(Backend):
    """Results fetched beforehand, by a picture's content hash, in a folder that
    `python -m tools_server.build_index results` writes. A picture without any finds nothing.
    """

    backend: Literal['prefetched']
    index: ExistingPath


class SerperLens(Remote):
    """Google Lens by Serper. It fetches the query picture itself, so this server must be reachable
    from outside.
    """

    backend: Literal['serper']
    public_url: HttpUrl  # where the internet reaches this server's GET /images/{sha256}
    base_url: HttpUrl = 'https://google.serper.dev'
    api_key_env: KeyVariable = Field('SERPER_API_KEY', validate_default=True)
    timeout_s: float = Field(20.0, gt=0)
    thumbnail_side: int = Field(56, ge=8)
    allow_private_pages: bool = False  # True only for tests


class RuleJudgeConfig(Backend):
    """The comparison of answers that the training reward uses, no network."""

    backend: Literal['rules']


class ModelJudgeConfig(OpenAICompatible):
    """A model says Yes or No; with `rules_first` it is asked only where the rules found no match."""

    backend: Literal['openai']
    model: str = Field('gpt-4o', min_length=1)  # which the paper judges with
    rules_first: bool = True
    # whether it is shown the question's; False for a model that takes text alone
    images: bool = True
    max_tokens: int = Field(16, ge=1)


TextConfig = LocalText | IndexedText | SerperText | Retriever | OpenSearch
ImageConfig = LocalImages | IndexedImages | PrefetchedImages | SerperLens
JudgeConfig = RuleJudgeConfig | ModelJudgeConfig
