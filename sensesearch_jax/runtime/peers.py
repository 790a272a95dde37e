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
    if distributed.global_state.num_processes > 1:
        _watch = Watch(timeout_s)


def end(well: bool) -> None:
    """Ends the heartbeats; if all went well, only when the others have ended well too.

    The others go on without this process only if it ended well.
    """
    if _watch is not None:
        _watch.end(well)


def wait_for_missing() -> None:
    """Waits as long as it takes to notice that a process is gone, which ends this one too.

    Returns if all are there, and at once in a program of one process. For errors that a peer's end
    may have caused, such as a collective's.
    """
    if _watch is not None:
        time.sleep(_watch.timeout_s + 2 * _watch.pause_s)


def leave(why: str) -> NoReturn:
    """Ends this process at once, from whatever thread, since another one is missing.

    Args:
        why: the other, and how it is missing.
    """
    print(
        f'sensesearch_jax: {why}, and without it this run cannot go on; start the same command again in all '
        'processes.',
        file=sys.stderr,
        flush=True,
    )
    os._exit(stopping.EXIT_AGAIN)  # the main thread waits in a collective, for ever


class Watch:
    """The heartbeats of this process, and a look at those of the others.

    It begins before the devices are looked for, which all processes do together.

    Args:
        timeout_s: seconds of silence after which a process counts as gone.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s, self.pause_s = timeout_s, min(5.0, timeout_s / 5)
        state = distributed.global_state
        self._store, self._process = state.client, str(state.process_id)
        self._told, self._well = threading.Event(), False
        now = time.monotonic()
        # process -> (its last heartbeat, when it was first seen)
        self._seen = {str(i): ('', now) for i in range(state.num_processes)}
        self._reached = now
        self._host = socket.gethostname()
        # Where the first process is gone, jax aborts the others without asking.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, daemon=True, name='peers')
        self._thread.start()

    def end(self, well: bool) -> None:
        """Ends the heartbeats; if all went well, when all others have said so too.

        Until then one of them may be killed, and jax would wait for it without a word.
        """
        self._well = well
        self._told.set()
        self._thread.join()

    def _run(self) -> None:
        beat = 0
        while not (told := self._told.wait(self.pause_s)) or self._well:
            if told:
                time.sleep(0.1)
            beat += 1
            try:
                self._write(DONE if told else f'{beat} {self._host}')
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
            if told and all(said == DONE for said, _ in self._seen.values()):
                return

    def _write(self, text: str) -> None:
        self._store.key_value_set(ALIVE + self._process, text, allow_overwrite=True)

    def _missing(self, process: str) -> NoReturn:
        said, since = self._seen[process]
        host = f' on {said.partition(" ")[2]}' if said not in ('', DONE) else ''
        silent_s = time.monotonic() - since
        leave(
            f'process {process}{host} of {len(self._seen)} has given no sign of life for {silent_s:.0f} s'
        )

    def _aborted(self, _: int) -> None:
        """On SIGABRT: the sentence if the first process is gone; else the abort goes on."""
        host, _, port = distributed.global_state.coordinator_address.rpartition(':')
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
        except OSError:
            self._missing('0')
