"""Converts a published set into a tensorflow-datasets directory (array_record), which any source reads.

    python -m sensesearch_jax.data.convert --list
    python -m sensesearch_jax.data.convert fvqa downloads/FVQA data

SRC is the folder with the files as they are published; docs/published_sets.md says which. DST is the folder
of all converted sets, `data.dir` of a config, by default that of tensorflow-datasets: the set is written to
DST/NAME/VERSION, whole or not at all. A record that is no question (an image is missing, an id is there
twice) is left out, counted and named by kind; more than --max_bad_share of them are an error. Exit status:
0, or 2 when the files cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

from etils import epath

from sensesearch_jax.data.faults import Faults
from sensesearch_jax.data.names import default_folder
from sensesearch_jax.data.published import NAMES, published_set
from sensesearch_jax.data.published.set_base import REFUSED
from sensesearch_jax.errors import UserError
from tools_server import command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 2 after a UserError, whose sentence it prints."""
    parser = command.parser('sensesearch_jax.data.convert', __doc__)
    parser.add_argument('name', nargs='?', metavar='NAME', help=f'one of {", ".join(NAMES)}')
    parser.add_argument('source', nargs='?', metavar='SRC', help='folder with the published files')
    parser.add_argument(
        'target',
        nargs='?',
        metavar='DST',
        default=default_folder(),
        help='folder of all converted sets (default: %(default)s)',
    )
    parser.add_argument(
        '--max_bad_share',
        type=float,
        default=0.01,
        metavar='SHARE',
        help='of the records of a split that may be left out, 0 to 1 (default: %(default)s)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a set that was converted before'
    )
    parser.add_argument(
        '--list', action='store_true', help='show the sets and where they are published'
    )
    options = parser.parse_args(arguments)
    if options.list:
        print('\n'.join(map(describe, NAMES)))
        return 0
    if None in (options.name, options.source):
        parser.error('give NAME and SRC, or --list')
    if not 0 <= options.max_bad_share <= 1:
        parser.error('--max_bad_share is a share, from 0 to 1')
    logging.getLogger('absl').setLevel(logging.WARNING)
    try:
        print(convert(options.name, options.source, options.target, options))
    except UserError as error:
        print(f'convert: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('convert: interrupted; nothing was written', file=sys.stderr)
        return 130
    return 0


def describe(name: str) -> str:
    """A line about a set: splits with their sizes, and its page."""
    kind = published_set(name)
    splits = ', '.join(
        f'{split} {published.size or "?"}' for split, published in kind.splits.items()
    )
    return f'{name:24} {splits:28} {kind.home}'


def convert(name: str, source: str, target: str, options: argparse.Namespace) -> str:
    """Converts a set and returns a summary.

    Args:
        name: of the set.
        source: folder with its published files.
        target: folder of all converted sets.
        options: `max_bad_share` and `overwrite`.

    Raises:
        UserError: the files cannot be used, or the set is there already.
    """
    kind = published_set(name)
    kind.files(source)  # before anything is written
    try:
        epath.Path(target).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'{target} cannot be written ({error.strerror}); choose another folder'
        ) from None
    builder = kind(folder=source, max_bad_share=options.max_bad_share, data_dir=str(target))
    directory = epath.Path(builder.data_dir)
    with _aside(directory, options.overwrite):
        builder.download_and_prepare()
    return '\n'.join(
        [
            f'{name}: written to {directory}',
            *(
                f'  {split}: {info.num_examples} questions, {info.num_bytes / 2**20:.1f} MiB'
                for split, info in builder.info.splits.items()
            ),
            *_counted('no part of the set as it is asked here', builder.left_out),
            *_counted(f'refused ({REFUSED} beside the set names them)', builder.faults),
        ]
    )


def _counted(title: str, faults: Faults) -> list[str]:
    return (
        [f'{title}: {faults.count}', *(f'  {line}' for line in faults.lines())]
        if faults.count
        else []
    )


@contextlib.contextmanager
def _aside(directory: epath.Path, overwrite: bool) -> Iterator[None]:
    """A set that was converted before stands aside, and comes back if the new one is not written."""
    old = directory.parent / f'{directory.name}.old'
    if old.exists():  # of a conversion that was killed
        old.rmtree() if directory.exists() else old.rename(directory)
    if not directory.exists():
        yield
        return
    if not overwrite:
        raise UserError(f'{directory} is there already; --overwrite replaces it')
    directory.rename(old)
    try:
        yield
    except BaseException:
        old.rename(directory)
        raise
    old.rmtree()


if __name__ == '__main__':
    sys.exit(main())
