"""Fields of a config that pin a workdir, and those that may change when its run goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.config.fields import OPERATIONAL
from sensesearch_jax.errors import UserError


def may_change(config: ConfigDict) -> tuple[str, ...]:
    """The fields that may differ from those that the workdir was begun with.

    RL may be given more steps where its learning rate is constant. A cosine comes down over all of
    its steps, and so pins them. (`rl.averaged` is then the mean over the later two thirds of the
    new steps, as far as they are still to come.)
    """
    more = ('rl.steps',) if config.task == 'rl' and config.rl.schedule == 'constant' else ()
    return *OPERATIONAL, *more


def extent(config: ConfigDict) -> dict[str, int]:
    """Extent of the run by those fields that may be raised when it is over."""
    return {'rl.steps': config.rl.steps} if 'rl.steps' in may_change(config) else {}


def reaches(done: Mapping[str, int], config: ConfigDict) -> bool:
    """Whether a run that went so far, by the names of `extent`, has nothing left to do."""
    return all(done[name] >= wanted for name, wanted in extent(config).items())


def check_paths(config: ConfigDict, workdir: str | None) -> None:
    """Refuses addresses of object stores where files are read or written; as paths they would be
    local folders.

    Raises:
        UserError: there is one.
    """
    for name, value in [('--workdir', workdir), *_texts(config)]:
        # An address of a service is one, and jax reads and writes its compilation cache in such a
        # store by itself.
        if name.rpartition('.')[2] in ('url', 'webhook', 'compilation_cache', 'question'):
            continue
        if isinstance(value, str) and re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', value):
            raise UserError(
                f'{name} {value} is no path: files are read and written in local or mounted folders only; mount '
                'the store (gcsfuse, mount-s3) and give the path there.'
            )


def _texts(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _texts(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
