"""Heartbeats of the processes of one program, by which those that are left notice that one is gone.

A collective whose peer is gone waits without end on most back ends. Here each process writes a
heartbeat to the key-value store of jax's coordination service and reads those of the others, in a
thread; one that is silent for too long ends the program with a sentence that names it, and with the
exit code that asks for another start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed  # the store has no public name; orbax takes it from here too

from sensesearch_jax.runtime import stopping

ALIVE, STOP, DONE = 'sensesearch/alive/', 'sensesearch/stop', 'done'

_watch: Watch | None = None


def watch(timeout_s: float) -> None:
    """Starts the heartbeats of this process, in a program of several; `end` ends them.

    Args:
        timeout_s: seconds of silence after which a process counts as gone.
    """
    global _watch
    if jax.process_count() > 1:
        _watch = Watch(timeout_s)


def end(well: bool) -> None:
    """Ends the heartbeats; the others go on without this process only if it ended well."""
    if _watch is not None:
        _watch.end(well)


def wait_for_missing() -> None:
    """Waits as long as it takes to notice that a process is gone, which ends this one too.

    Returns if all are there, and at once in a program of one process. For errors that a peer's end
    may have caused, such as a collective's.
    """
    if _watch is not None:
        time.sleep(_watch.timeout_s + 2 * _watch.pause_s)


class Watch:
    """The heartbeats of this process, and a look at those of the others.

    Args:
        timeout_s: seconds of silence after which a process counts as gone.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s, self.pause_s = timeout_s, min(5.0, timeout_s / 5)
        self._store = distributed.global_state.client
        self._ended = threading.Event()
        now = time.monotonic()
        # process -> (its last heartbeat, when it was first seen)
        self._seen = {str(i): ('', now) for i in range(jax.process_count())}
        self._reached = now
        self._host = socket.gethostname()
        # Where the first process is gone, jax aborts the others without asking.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, daemon=True, name='peers')
        self._thread.start()

    def end(self, well: bool) -> None:
        """Ends the heartbeats, with a last word to the others if all went well."""
        self._ended.set()
        self._thread.join()
        if well:
            self._write(DONE)

    def _run(self) -> None:
        beat = 0
        while not self._ended.wait(self.pause_s):
            beat += 1
            try:
                self._write(f'{beat} {self._host}')
                if stopping.ordered():
                    self._store.key_value_set(STOP, stopping.ordered(), allow_overwrite=True)
                found = dict(self._store.key_value_dir_get('sensesearch/'))
            except jax.errors.JaxRuntimeError:  # the store, which is the first process's, is away
                found = None
            now = time.monotonic()
            if found is None:
                if now - self._reached > self.timeout_s:
                    self._missing('0')
                continue
            self._reached = now
            if STOP in found:
                stopping.order(found[STOP])
            for process, (before, since) in self._seen.items():
                said = found.get(ALIVE + process, '')
                if said != before:
                    self._seen[process] = said, now
                elif said != DONE and now - since > self.timeout_s:
                    self._missing(process)

    def _write(self, text: str) -> None:
        self._store.key_value_set(f'{ALIVE}{jax.process_index()}', text, allow_overwrite=True)

    def _missing(self, process: str) -> NoReturn:
        said, since = self._seen[process]
        host = f' on {said.partition(" ")[2]}' if said else ''
        print(
            f'sensesearch_jax: process {process}{host} of {jax.process_count()} has given no sign of life for '
            f'{time.monotonic() - since:.0f} s, and without it this run cannot go on; start the same command '
            'again in all processes.',
            file=sys.stderr,
            flush=True,
        )
        os._exit(stopping.EXIT_AGAIN)  # the main thread waits in a collective, for ever

    def _aborted(self, _: int) -> None:
        """On SIGABRT: the sentence if the first process is gone; else the abort goes on."""
        host, _, port = distributed.global_state.coordinator_address.rpartition(':')
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
        except OSError:
            self._missing('0')
