"""Orders of a scheduler to stop: SIGTERM, SIGUSR1 and jax's preemption service.

Kubernetes, SLURM and cloud machines that are taken back send SIGTERM some seconds before they kill;
SLURM sends SIGUSR1 earlier where a job asks for it (`#SBATCH --signal=USR1@120`). A run that trains
saves its state at the next place where it is whole and ends; any other ends at once, since its files
survive that. Both end with EXIT_AGAIN.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from jax.experimental import multihost_utils

from sensesearch_jax.runtime import multihost

EXIT_AGAIN = 75
"""Exit code of a run that is to be started again: EX_TEMPFAIL of sysexits.h."""

SIGNALS = signal.SIGTERM, signal.SIGUSR1

_ordered_by = ''  # '' as long as nothing has told this process to stop
_training = False
_ended = itertools.count(1)  # steps of this start


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
    sys.unraisablehook = _raise_again


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


def check(step_ends: bool = False) -> None:
    """Ends training if any process was told to stop; all of them call this together.

    Args:
        step_ends: whether a step is done, and jax's preemption service is asked too. It has what
            arrives before `listen`.

    Raises:
        Stopped: one was. The state that the caller can save is to be saved.
    """
    said = next(filter(None, multihost.allgather_texts(_ordered_by)), '')
    # The service is there with multi_host alone, in one process too. It counts from a program's
    # start; a run that goes on would never come to its number.
    if not said and step_ends and multihost_utils.reached_preemption_sync_point(next(_ended)):
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


def _raise_again(
    unraisable: sys.UnraisableHookArgs,
    report: Callable[[sys.UnraisableHookArgs], None] = sys.unraisablehook,
) -> None:
    """Repeats an order whose exception was dropped, as in a destructor or a callback of the collector.

    Args:
        unraisable: an exception that Python cannot raise where it is.
        report: takes those that are no order.
    """
    if issubclass(unraisable.exc_type, Stopped):
        main = threading.main_thread().ident
        threading.Timer(0.01, signal.pthread_kill, (main, SIGNALS[0])).start()
    else:
        report(unraisable)
