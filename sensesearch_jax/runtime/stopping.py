"""Orders of a scheduler to stop: SIGTERM, SIGUSR1 and jax's preemption service.

Kubernetes, SLURM and cloud machines that are taken back send SIGTERM some seconds before they kill;
SLURM sends SIGUSR1 earlier where a job asks for it (`#SBATCH --signal=USR1@120`). A run that trains
saves its state at the next place where it is whole and ends; any other ends at once, since its files
survive that. Both end with EXIT_AGAIN.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from sensesearch_jax.runtime import multihost

EXIT_AGAIN = 75
"""Exit code of a run that is to be started again: EX_TEMPFAIL of sysexits.h."""

SIGNALS = signal.SIGTERM, signal.SIGUSR1

_ordered_by = ''  # '' as long as nothing has told this process to stop
_training = False


class Stopped(BaseException):
    """The end of a run that was told to stop; its message is what told it.

    Like a KeyboardInterrupt no fault, and so not caught with them.
    """


def listen() -> None:
    """Takes the signals, from the main thread and after jax has begun to listen for SIGTERM.

    While the main thread waits in a program or a collective its handlers do not run; a thread
    notes the order then.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    arrived, arriving = socket.socketpair()
    arriving.setblocking(False)
    signal.set_wakeup_fd(arriving.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_note, args=(arrived,), daemon=True, name='signals').start()


def order(name: str) -> None:
    """Tells this process to stop; only the first order counts.

    Args:
        name: of what tells it, for the message.
    """
    global _ordered_by
    _ordered_by = _ordered_by or name


def ordered() -> str:
    """Name of what told this process to stop; '' if nothing did."""
    return _ordered_by


@contextlib.contextmanager
def between_steps() -> Iterator[None]:
    """Within it a signal is only noted, for `check` to find; at its end it counts."""
    global _training
    _training = True
    try:
        yield
    finally:
        _training = False
    if _ordered_by:
        raise Stopped(_ordered_by)


def check(step: int | None = None) -> None:
    """Ends training if any process was told to stop; all of them call this together.

    Args:
        step: number of the step that is done, with which jax's preemption service is asked too;
            None in the middle of one.

    Raises:
        Stopped: one was. The state that the caller can save is to be saved.
    """
    if jax.process_count() == 1:
        if _ordered_by:
            raise Stopped(_ordered_by)
        return
    said = next(filter(None, multihost.allgather_texts(_ordered_by)), '')
    if not said and step is not None and multihost_utils.reached_preemption_sync_point(step):
        said = "jax's preemption service"
    if said:
        order(said)
        raise Stopped(said)


def _note(arrived: socket.socket) -> None:
    while numbers := arrived.recv(64):
        for number in numbers:
            if number in SIGNALS:
                order(signal.Signals(number).name)


def _on_signal(number: int, _: FrameType | None) -> None:
    order(signal.Signals(number).name)
    if not _training:
        raise Stopped(_ordered_by)
