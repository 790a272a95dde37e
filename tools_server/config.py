"""The server's configuration: one YAML or Python file, checked as a whole before anything else
happens.

A Python file defines `get_config()`, which returns the same fields as a dict. Relative paths are
relative to the file. Keys are never in it: it names environment variables.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from tools_server.backend_config import (
    AnyPath,
    ImageConfig,
    JudgeConfig,
    KeyVariable,
    RuleJudgeConfig,
    Section,
    TextConfig,
)
from tools_server.pictures.convert import MAX_PIXELS

LOOPBACK = ('127.0.0.1', 'localhost', '::1')
Mode = Literal['live', 'record', 'replay', 'offline']


class ConfigError(ValueError):
    """The configuration cannot be used; the message is one sentence for the person who wrote it."""


class ImageStoreConfig(Section):
    """Folder of the pictures, and limits of their size."""

    directory: AnyPath | None = None  # None: a temporary folder, removed at exit
    max_bytes: int = Field(64 * 2**20, ge=1)  # largest upload, encoded
    # of all uploads that are in memory at the same time
    upload_bytes: int = Field(128 * 2**20, ge=1)
    max_pixels: int = Field(MAX_PIXELS, ge=1)  # largest picture, decoded
    decoded_bytes: int = Field(512 * 2**20, ge=0)  # memory for decoded originals
    # decoded at the same time, and as many in workers; each up to 14 bytes a pixel
    decoders: int = Field(2, ge=1)
    decode_s: float = Field(5.0, gt=0)  # a picture whose decoding takes longer is refused
    # limit of the folder; what was used longest ago goes first
    folder_bytes: int = Field(100 * 2**30, ge=2**20)
    # but nothing that was used within so long: a run may refer to it
    keep_hours: float = Field(6.0, gt=0)


class AnswerConfig(Section):
    """The file that keeps answers: a cache, or in the modes 'record' and 'replay' a recording."""

    path: AnyPath | None = None  # SQLite; None: answers are kept in memory only
    max_age_s: float = Field(30 * 86_400.0, gt=0)  # an older answer of a cache is asked for anew
    # the same of one that lacks something: a page, a summary
    partial_age_s: float = Field(120.0, gt=0)
    empty_age_s: float = Field(600.0, gt=0)  # and of one without any result
    # a cache that outgrows it loses what was used longest ago
    max_bytes: int = Field(2 * 2**30, ge=2**16)


class ServerConfig(Section):
    """Everything the server needs to know. A tool that is left out answers 'unavailable'."""

    host: str = '127.0.0.1'
    port: int = Field(0, ge=0, le=65535)  # 0: any free port
    token_env: KeyVariable | None = None  # variable with the bearer token that callers must send
    mode: Mode = 'live'
    threads: int = Field(8, ge=1)  # calls of each tool worked on at the same time
    queue: int = Field(256, ge=0)  # calls of each tool that may wait; further ones are sent away
    deadline_s: float = Field(60.0, gt=0)  # no call takes longer; a caller may ask for less
    cache_entries: int = Field(20_000, ge=0)  # answers kept in memory, per tool
    log_level: Literal['debug', 'info', 'warning', 'error'] = 'warning'  # 'info' logs every call
    mcp: bool = False  # offer the tools to MCP clients too, under /mcp
    answers: AnswerConfig = AnswerConfig()
    images: ImageStoreConfig = ImageStoreConfig()
    text_search: Annotated[TextConfig, Field(discriminator='backend')] | None = None
    image_search: Annotated[ImageConfig, Field(discriminator='backend')] | None = None
    judge: Annotated[JudgeConfig, Field(discriminator='backend')] = RuleJudgeConfig(backend='rules')

    @model_validator(mode='after')
    def _safe(self) -> ServerConfig:
        if self.host not in LOOPBACK and self.token_env is None:
            raise ValueError(
                f'host: {self.host!r} is not a loopback address; '
                'set token_env to the name of a variable that holds a token, or listen on 127.0.0.1'
            )
        if self.token_env is not None and len(os.environ.get(self.token_env, '').strip()) < 16:
            raise ValueError(
                f'token_env: the token in {self.token_env} needs at least 16 characters'
            )
        if self.mode in ('record', 'replay') and self.answers.path is None:
            raise ValueError(f"answers.path: mode '{self.mode}' needs the file of the recording")
        if self.mode == 'replay' and not self.answers.path.is_file():
            raise ValueError(
                f'answers.path: there is no recording {self.answers.path}; record one first'
            )
        return self

    def token(self) -> str | None:
        """The bearer token that callers must send; None: all may call."""
        return os.environ[self.token_env].strip() if self.token_env else None


def parse_config(data: Mapping[str, Any], base: Path = Path()) -> ServerConfig:
    """Checks a configuration given as a mapping.

    Args:
        data: the fields of `ServerConfig`.
        base: folder that relative paths start from.

    Raises:
        ConfigError: naming the first wrong field, its place and what is wrong with it.
    """
    try:
        context = {'base': base, 'mode': data.get('mode', 'live')}
        return ServerConfig.model_validate(dict(data), context=context)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first['loc']]
        if len(place) > 2 and place[0] in ('text_search', 'image_search', 'judge'):
            del place[1]  # the back end's name, which is no field
        problem = first['msg'].removeprefix('Value error, ')
        if not place and first['type'] == 'value_error':
            raise ConfigError(problem) from None  # about several fields: it names them itself
        where = '.'.join(place) or 'the configuration'
        if first['type'] == 'extra_forbidden':
            problem = 'there is no such field'
        raise ConfigError(f'{where}: {problem}') from None


def load_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> ServerConfig:
    """Reads and checks a YAML or Python file.

    Args:
        path: the file.
        changes: fields that replace the file's; a mapping replaces only the fields of a section it
            names.

    Raises:
        ConfigError: no such file, no fields in it, or a field is wrong.
    """
    path = Path(path)
    data = _read_python(path) if path.suffix == '.py' else _read_yaml(path)
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{path} must hold fields such as 'text_search:', not {type(data).__name__}"
        )
    data = dict(data)
    for name, value in (changes or {}).items():
        old = data.get(name)
        data[name] = (
            {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    try:
        return parse_config(data, path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'cannot read the configuration {path}: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not YAML: {" ".join(str(error).split())}') from None


def _read_python(path: Path) -> Any:
    try:
        return runpy.run_path(str(path))['get_config']()
    except OSError as error:
        raise ConfigError(f'cannot read the configuration {path}: {error.strerror}') from None
    except KeyError:
        raise ConfigError(f'{path} defines no get_config()') from None
    except Exception as error:
        raise ConfigError(f'{path} failed: {type(error).__name__}: {error}') from None
