"""Serves a live page of a run: `python -m sensesearch_jax.watch WORKDIR`.

WORKDIR is the workdir of a run of any task, or a folder of workdirs, which are then shown beside each other. The page
is served to this machine alone; open the address that is printed, or forward its port (ssh -L). It only reads, and may
be started and ended (Ctrl-C) at any time, also when the run is over. Exit status: 0 after Ctrl-C, 2 where there is
nothing to watch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.loopback import address_of, listen, serve
from sensesearch_jax.watch.app import create_app
from sensesearch_jax.watch.run_files import runs_in
from tools_server import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status: 2 after a UserError, whose sentence it prints."""
    parser = command.parser('sensesearch_jax.watch', __doc__)
    parser.add_argument('workdir', metavar='WORKDIR', type=Path, help='of a run, or of several')
    parser.add_argument('--port', type=int, default=0, help='0 (default) takes a free one')
    options = parser.parse_args(arguments)
    try:
        names = list(runs_in(options.workdir))
        listener = listen(options.port, '--port')
        what = ', '.join(names) or 'no run yet'
        announcement = f'Watching {what}. Open {address_of(listener)} (Ctrl-C ends it).'
        serve(create_app(options.workdir), listener, announcement)
    except UserError as error:
        print(f'watch: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
