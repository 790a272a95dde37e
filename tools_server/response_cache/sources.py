"""Sources of the answers in a file: a back end's settings, its place, and a fingerprint of its data.

All three are part of every key, so that neither two services nor two corpora of one name answer for
each other. A replay has no data to look at and may not know where a service was: it finds both in
the recording, which notes for each tool whose answers it holds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from tools_server.config import ConfigError
from tools_server.response_cache.reader import Reader
from tools_server.response_cache.store import AnswerStore


@dataclass(frozen=True)
class Source:
    """A back end.

    Attributes:
        settings: that its answers depend on.
        place: addresses of the services it asks.
        data: fingerprint of the files it answers from; '' where they are elsewhere.
    """

    settings: dict[str, Any]
    place: list[str]
    data: str

    def key(self) -> dict[str, Any]:
        """The back end's part of a key."""
        return self.settings | {'source': _hash([self.place, self.data])}


def note(store: AnswerStore, tool: str, source: Source) -> None:
    """Writes into a recording that it holds answers of a back end.

    Args:
        store: the recording.
        tool: name of the tool.
        source: the back end's settings, place and data.

    Raises:
        ConfigError: it holds some of the same back end over other data.
        StoreError: the file cannot be used.
    """
    for other in _noted(store, tool):
        if (
            other.settings == source.settings
            and other.place == source.place
            and other.data != source.data
        ):
            raise ConfigError(
                f'answers.path: the recording holds answers of {tool} from other data of the same name; '
                'record into a new file'
            )
    value = json.dumps(asdict(source), sort_keys=True).encode()
    store.put(f'{_prefix(tool)}{_hash(asdict(source))}', value)


def noted_key(
    recording: Reader, tool: str, settings: dict[str, Any], place: list[str]
) -> dict[str, Any]:
    """The part of the keys of the one back end of a recording that fits a configuration.

    Args:
        recording: the file.
        tool: name of the tool.
        settings: as in `Source`.
        place: as in `Source`; it decides only where several fit.

    Raises:
        ConfigError: several fit.
        StoreError: the file cannot be read.
    """
    fitting = [source for source in _noted(recording, tool) if source.settings == settings]
    if len(fitting) > 1:
        fitting = [source for source in fitting if source.place == place]
        if len(fitting) != 1:
            raise ConfigError(
                f'answers.path: the recording holds answers of several back ends of {tool}; '
                'give the base_url of the one to replay'
            )
    # Recordings of earlier versions note nothing: their keys have the settings alone.
    return fitting[0].key() if fitting else settings


def _noted(store: Reader, tool: str) -> list[Source]:
    return [Source(**json.loads(value)) for value in store.values(_prefix(tool))]


def _prefix(tool: str) -> str:
    return f'back end of {tool}: '


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
