"""The server's configuration: one YAML file, checked as a whole before anything else happens.

Relative paths are relative to the file. Keys of paid services are never in it: it names environment
variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.functional_validators import AfterValidator


class ConfigError(ValueError):
    """The configuration cannot be used; the message is one sentence for the person who wrote it."""


def _existing_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get('base', Path())
    path = (base / path.expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f'there is no file {path}')
    return path


def _key_in_environment(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f'the environment variable {name} holds no key; set it or choose a local back end')
    return name


def _http_url(url: str) -> str:
    if not url.startswith(('http://', 'https://')):
        raise ValueError(f'{url!r} is not an http(s) URL')
    return url.rstrip('/')


ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
KeyVariable = Annotated[str, AfterValidator(_key_in_environment)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


class Section(BaseModel):
    """A part of the configuration; an unknown field is an error, so that a typing mistake is never
    ignored."""

    model_config = ConfigDict(extra='forbid', frozen=True)


class OpenAICompatible(Section):
    """A chat-completions server."""

    base_url: HttpUrl  # up to and including /v1
    model: str = Field(min_length=1)
    api_key_env: KeyVariable | None = None  # None: the server asks for no key
    timeout_s: float = Field(30.0, gt=0)
    max_tokens: int = Field(512, ge=1)


class LocalText(Section):
    """BM25 over passages on disk."""

    backend: Literal['local']
    passages: ExistingFile  # .jsonl or .jsonl.xz of {"id", "title", "text"}
    max_chars: int = Field(400, ge=40)  # longest text of a result
    title_boost: float = Field(3.0, gt=0)  # weight of a word in the title against one in the text


class SerperText(Section):
    """Google results by Serper; with a summariser, the pages behind them are read and summarised."""

    backend: Literal['serper']
    base_url: HttpUrl = 'https://google.serper.dev'
    api_key_env: KeyVariable = Field('SERPER_API_KEY', validate_default=True)
    timeout_s: float = Field(10.0, gt=0)
    max_chars: int = Field(1500, ge=40)
    summariser: OpenAICompatible | Literal['extractive'] | None = None
    allow_private_pages: bool = False  # True only for tests: pages on this machine or its network may be read


class LocalImages(Section):
    """Nearest pictures of a gallery, searched with the regions found in the query picture."""

    backend: Literal['local']
    gallery: ExistingFile  # .jsonl of {"id", "title", "file"}, files relative to it
    upload_side: int = Field(1024, ge=64)  # the query is first shrunk to this long side, in pixels
    min_region: int = Field(48, ge=8)  # a region whose short side is below this, in pixels, is not looked up
    min_share: float = Field(0.0, ge=0, le=1)  # nor one that covers less of the query picture than this
    min_similarity: float = Field(0.8, ge=-1, le=1)  # a gallery picture less alike is no match
    thumbnail_side: int = Field(56, ge=8)  # pixels; thumbnails are square


class SerperLens(Section):
    """Google Lens by Serper. It fetches the query picture itself, so this server must be reachable from
    outside."""

    backend: Literal['serper']
    public_url: HttpUrl  # where the internet reaches this server's GET /images/{sha256}
    base_url: HttpUrl = 'https://google.serper.dev'
    api_key_env: KeyVariable = Field('SERPER_API_KEY', validate_default=True)
    timeout_s: float = Field(20.0, gt=0)
    thumbnail_side: int = Field(56, ge=8)
    allow_private_pages: bool = False  # True only for tests


class RuleJudgeConfig(Section):
    """Normalised exact match, no network."""

    backend: Literal['rules']


class ModelJudgeConfig(OpenAICompatible):
    """A model says Yes or No; with `rules_first` it is asked only where the rules found no match."""

    backend: Literal['openai']
    rules_first: bool = True
    max_tokens: int = Field(16, ge=1)


class ImageStoreConfig(Section):
    """Where pictures are kept and how large they may be."""

    directory: Path | None = None  # None: a temporary folder, removed at exit
    max_bytes: int = Field(64 * 2**20, ge=1)  # largest upload, encoded
    max_pixels: int = Field(100_000_000, ge=1)  # largest picture, decoded
    decoded_bytes: int = Field(512 * 2**20, ge=0)  # memory for decoded originals


class ServerConfig(Section):
    """Everything the server needs to know. A tool that is left out answers 'unavailable'."""

    host: str = '127.0.0.1'
    port: int = Field(0, ge=0, le=65535)  # 0: any free port
    threads: int = Field(8, ge=1)  # tool calls worked on at the same time
    deadline_s: float = Field(
        60.0, gt=0
    )  # no call takes longer; the client's own deadline is usually shorter
    cache_entries: int = Field(20_000, ge=0)  # answers kept in memory, per tool
    images: ImageStoreConfig = ImageStoreConfig()
    text_search: Annotated[LocalText | SerperText, Field(discriminator='backend')] | None = None
    image_search: Annotated[LocalImages | SerperLens, Field(discriminator='backend')] | None = None
    judge: Annotated[RuleJudgeConfig | ModelJudgeConfig, Field(discriminator='backend')] = RuleJudgeConfig(
        backend='rules'
    )

    @field_validator('host')
    @classmethod
    def _loopback_only(cls, host: str) -> str:
        if host not in ('127.0.0.1', 'localhost', '::1'):
            raise ValueError(f'{host!r} is not a loopback address; the server listens on this machine only')
        return host


def parse_config(data: Mapping[str, Any], base: Path = Path()) -> ServerConfig:
    """Checks a configuration given as a mapping.

    Args:
        data: the fields of `ServerConfig`.
        base: folder that relative paths start from.

    Raises:
        ConfigError: naming the first wrong field, its place and what is wrong with it.
    """
    try:
        return ServerConfig.model_validate(dict(data), context={'base': base})
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first['loc']]
        if len(place) > 2 and place[0] in ('text_search', 'image_search', 'judge'):
            del place[1]  # the back end's name, which is no field
        where = '.'.join(place) or 'the configuration'
        problem = first['msg'].removeprefix('Value error, ')
        if first['type'] == 'extra_forbidden':
            problem = 'there is no such field'
        raise ConfigError(f'{where}: {problem}') from None


def load_config(path: str | Path) -> ServerConfig:
    """Reads and checks a YAML file.

    Raises:
        ConfigError: no such file, no YAML mapping in it, or a field is wrong.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'cannot read the configuration {path}: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not YAML: {" ".join(str(error).split())}') from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} must hold fields such as 'text_search:', not {type(data).__name__}")
    try:
        return parse_config(data, path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None
