"""Notification of a run's user by a command or a webhook, beside the run, which it neither delays nor
ends.
"""

from __future__ import annotations

import os
import queue
import string
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import requests

from sensesearch_jax.errors import UserError


class Notifier:
    """A thread that sends messages one after another.

    Args:
        command: that the shell runs for each message, whose members are in its environment; ''
            for none.
        webhook: address that each message is posted to as JSON; '' for none. $NAME in it stands
            for an environment variable, so that secrets are in no file of the run.
        deadline_s: seconds that one command or request may take.
    """

    def __init__(self, command: str, webhook: str, deadline_s: float) -> None:
        self.command, self.webhook, self.deadline_s = command, webhook_address(webhook), deadline_s
        self._messages: queue.Queue[Mapping[str, str] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name='notification', daemon=True)
        if command or webhook:
            self._thread.start()

    def send(self, message: Mapping[str, str]) -> None:
        """Queues a message with `text` and other members, and returns at once."""
        if self._thread.ident:
            self._messages.put(message)

    def close(self) -> None:
        """Waits for the messages that are under way, at most as long as one may take twice."""
        if self._thread.ident:
            self._messages.put(None)
            self._thread.join(2 * self.deadline_s)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            for way, send in (('command', self._run), ('webhook', self._post)):
                if getattr(self, way) and (failure := send(message)):
                    print(
                        f'sensesearch_jax: alarms.{way} {failure}; the run goes on.',
                        file=sys.stderr,
                    )

    def _run(self, message: Mapping[str, str]) -> str:
        """Runs the command; returns why it failed, '' if it did not."""
        variables = {f'ALARM_{name.upper()}': value for name, value in message.items()}
        try:
            process = subprocess.Popen(
                self.command,
                shell=True,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:
            return f'cannot be started ({error.strerror})'
        try:
            _, said = process.communicate(timeout=self.deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # what the shell has started too
            process.communicate()
            return f'took more than {self.deadline_s:g} s (alarms.deadline_s) and was ended'
        last = said.decode(errors='replace').strip().rpartition('\n')[2]
        return f'ended with status {process.returncode}: {last}' if process.returncode else ''

    def _post(self, message: Mapping[str, str]) -> str:
        """Posts the message; returns why that failed, without the address, which may be a secret."""
        began = time.monotonic()
        try:
            answer = requests.post(
                self.webhook, json=dict(message), timeout=self.deadline_s, allow_redirects=False
            )
        except requests.RequestException as error:
            took = time.monotonic() - began
            return f'cannot be reached ({type(error).__name__} after {took:.0f} s)'
        return '' if answer.ok and not answer.is_redirect else f'answered {answer.status_code}'


def webhook_address(webhook: str) -> str:
    """The address of the field `alarms.webhook`, with its environment variables put in.

    Raises:
        UserError: a variable is not set, or it is no address of http or https.
    """
    try:
        address = string.Template(webhook).substitute(os.environ)
    except KeyError as error:
        raise UserError(
            f'alarms.webhook names the environment variable {error.args[0]}, which is not set; set it to '
            'the address.'
        ) from None
    except ValueError:
        raise UserError(
            "alarms.webhook has a '$' that begins no variable's name; write '$$' for the character."
        ) from None
    if address and not address.startswith(('http://', 'https://')):
        raise UserError('alarms.webhook is no address; give one of http or https, or $VARIABLE.')
    return address
