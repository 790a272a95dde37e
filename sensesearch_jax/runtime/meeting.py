"""The start of a program of several processes: they meet, or those that have not come are named.

jax waits for all of its processes, and where one is missing it aborts the others without a name.
Here each process that waits leaves a note in the workdir, which all hosts see. So the others can say
whose note is missing, and end with the exit code that asks for another start. Once all have met,
runtime/peers.py watches over them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Self

import jax
from jax._src import distributed  # knows a process's number before the processes have met

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import peers

RENEW_S, FRESH_S = 1.0, 15.0
"""Seconds between two renewals of a note, and its age from which its process counts as missing."""


def start(workdir: Path, meet_timeout_s: float, peer_timeout_s: float) -> None:
    """Initializes jax.distributed, before anything else uses jax, and starts the heartbeats.

    On TPU pods, GKE, SLURM and under MPI jax finds the other processes by itself. Elsewhere it needs
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (docs/multi_host.md).

    Args:
        workdir: of the run, on a file system that all hosts see.
        meet_timeout_s: seconds after which this process no longer waits for the others to come.
        peer_timeout_s: seconds of silence after which one that has come counts as gone.

    Raises:
        UserError: these variables are missing, or the other processes cannot be reached.
    """

    def number(name):
        return int(os.environ[name]) if name in os.environ else None

    with Waiting(workdir, meet_timeout_s, notice_s=peer_timeout_s):
        try:
            jax.distributed.initialize(
                num_processes=number('JAX_NUM_PROCESSES'),
                process_id=number('JAX_PROCESS_ID'),
                # jax aborts without a sentence; it is not to be the first to notice
                initialization_timeout=int(meet_timeout_s + 60),
                heartbeat_timeout_seconds=int(2 * peer_timeout_s + 60),
                # of the meeting at the end, which follows on that of the heartbeats
                shutdown_timeout_seconds=int(peer_timeout_s + 60),
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f'The other processes of this run cannot be joined, see docs/multi_host.md: {error}'
            ) from None
    peers.watch(peer_timeout_s)


class Waiting:
    """The note of this process, which is there and fresh within `with`, and the end of its patience.

    Args:
        folder: of the notes; it is made if needed.
        timeout_s: seconds after which this process ends, and names those that are missing.
        notice_s: seconds after which it names them for the first time.
    """

    def __init__(self, folder: Path, timeout_s: float, notice_s: float):
        self.folder, self.timeout_s, self.notice_s = folder, timeout_s, notice_s
        self._met = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name='meeting')

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._met.set()
        self._thread.join()

    def _run(self) -> None:
        began, noticed = time.monotonic(), False
        while not self._met.wait(RENEW_S):
            waited = time.monotonic() - began
            self._renew()
            if waited > self.timeout_s:
                peers.leave(f'{self._missing()} has not come for {waited:.0f} s')
            if waited > self.notice_s and not noticed:
                noticed = True
                print(
                    f'sensesearch_jax: this process has waited for {self._missing()} for {waited:.0f} s, and '
                    f'waits {self.timeout_s - waited:.0f} s more.',
                    file=sys.stderr,
                    flush=True,
                )
        if distributed.global_state.client is not None:
            self._note(distributed.global_state.process_id).unlink(missing_ok=True)

    def _note(self, process: int) -> Path:
        return self.folder / f'.waiting-{process}'

    def _renew(self) -> None:
        if distributed.global_state.client is None:
            return  # jax has yet to find out this process's number
        with contextlib.suppress(OSError):  # the file system may be away for a while
            self.folder.mkdir(parents=True, exist_ok=True)
            self._note(distributed.global_state.process_id).write_text(socket.gethostname())

    def _missing(self) -> str:
        """Names of the processes without a fresh note, by the clock of the notes' file system."""
        state, names = distributed.global_state, []
        notes = {i: self._note(i) for i in range(state.num_processes) if i != state.process_id}
        for process, note in notes.items():
            try:
                age = self._note(state.process_id).stat().st_mtime - note.stat().st_mtime
                if age > FRESH_S:
                    names.append(f'process {process} on {note.read_text()}')
            except OSError:
                names.append(f'process {process}')
        return f'{", ".join(names)} of {len(notes) + 1}' if names else 'another process'
