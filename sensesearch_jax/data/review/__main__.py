"""Serves a page on which a person accepts or rejects questions: `python -m sensesearch_jax.data.review PATH`.

PATH is a source of questions (docs/data.md), such as the candidates.jsonl of configs/build_benchmark.py. The page
is served to this machine alone; open the address that is printed, or forward its port (ssh -L). Every decision is
in DECISIONS as soon as it is made, and ACCEPTED always holds the questions that are accepted. End it with Ctrl-C;
the same command goes on where it stopped. Exit status: 0 after Ctrl-C, 2 where the source cannot be reviewed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sensesearch_jax.data.review.app import create_app
from sensesearch_jax.data.review.decisions import Decisions
from sensesearch_jax.data.sources import read_source
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.loopback import address_of, listen, serve
from tools_server import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status: 2 after a UserError, whose sentence it prints."""
    parser = command.parser('sensesearch_jax.data.review', __doc__)
    parser.add_argument('path', metavar='PATH', help='source of the questions')
    parser.add_argument('--split', default='', help='part of the source; all of it by default')
    parser.add_argument('--decisions', type=Path, help='default: PATH.decisions.jsonl')
    parser.add_argument('--accepted', type=Path, help='default: PATH.accepted.jsonl')
    parser.add_argument('--port', type=int, default=0, help='0 (default) takes a free one')
    options = parser.parse_args(arguments)
    logging.getLogger('absl').setLevel(logging.WARNING)
    beside = options.path.rstrip('/').removesuffix('.jsonl')
    files = [
        given or Path(f'{beside}.{name}.jsonl')
        for given, name in ((options.decisions, 'decisions'), (options.accepted, 'accepted'))
    ]
    try:
        found = read_source(options.path, options.split)
        if not found.questions:
            raise UserError(f'{options.path} has no sound question; data.check says why')
        with contextlib.closing(Decisions(found.questions, *files)) as decisions:
            listener = listen(options.port, '--port')
            announcement = (
                f'{len(found.questions)} questions, {found.faults.count} unsound records left out. Open '
                f'{address_of(listener)} (Ctrl-C ends it).\n'
                f'Decisions: {files[0]}; accepted questions: {files[1]}'
            )
            serve(create_app(decisions, Path(options.path).name), listener, announcement)
    except UserError as error:
        print(f'review: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
