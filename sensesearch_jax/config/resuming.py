"""Fields of a config that pin a workdir, and those that may change when its run goes on."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from sensesearch_jax.config.fields import OPERATIONAL, SOURCES, leaves
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.storage import EXTRAS, is_address, local_input


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


def in_stores(config: ConfigDict) -> tuple[str, ...]:
    """The fields whose files may lie in an object store: those that are fetched before the run."""
    return ('policy', 'sft.data', *(('tools.folder',) if config.task == 'sft' else ()))


def fetch_inputs(config: ConfigDict) -> None:
    """Puts local copies in the place of those fields' addresses.

    Raises:
        UserError: a store cannot be reached, or has nothing there.
    """
    for name, value in list(leaves(config)):
        if name in in_stores(config) and is_address(value):
            local = local_input(value, config.scratch)
            config.update_from_flattened_dict({name: local})


def check_paths(config: ConfigDict, workdir: str | None) -> None:
    """Refuses addresses of object stores where no file is fetched or mirrored; as paths they would be
    local folders.

    Raises:
        UserError: there is one.
    """
    if is_address(workdir or '') and config.get('multi_host', False):
        raise UserError(
            f'--workdir {workdir} is a store, and multi_host wants a folder that all hosts see; mount the store '
            '(gcsfuse, mount-s3) and give the path there.'
        )
    for name, value in [('--workdir', workdir), *leaves(config)]:
        # An address of a service is one, sources of questions are read where they lie, and jax reads
        # and writes its compilation cache in such a store by itself.
        addresses = 'url', 'webhook', 'compilation_cache', 'question'
        if name in SOURCES or name.rpartition('.')[2] in addresses:
            continue
        if not isinstance(value, str) or not is_address(value):
            continue
        if name not in ('--workdir', *in_stores(config)):
            raise UserError(
                f'{name} {value} is no path: its files are read and written in local or mounted folders only; mount '
                'the store (gcsfuse, mount-s3) and give the path there.'
            )
        if value.partition('://')[0] not in EXTRAS:
            raise UserError(
                f'{name} {value} is in no store that is known; choose from '
                f'{", ".join(f"{scheme}://" for scheme in EXTRAS)}, or give a path.'
            )
