"""The process that sends a run's paid requests: a kill of the run loses no reply that was paid for.

The run writes requests to its standard input and reads replies from its standard output, JSON objects,
one a line. When its input ends, because the run is over or was killed, it sends nothing more, waits for
the replies to what it has sent, stores them in the ledger and ends. The next start of the run waits for
that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.ledger import Budget, BudgetSpent, Ledger, LedgerMeter, key_of
from sensesearch_jax.agent.openai_model import OpenAIModel, Reply, Request, ServedModel
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.closing import Closing

ERRORS = {cls.__name__: cls for cls in (BudgetSpent, UserError, RuntimeError)}


class PaidRequests(Closing):
    """A run's paid requests, sent by a process of their own. Safe to share between threads.

    Args:
        ledger: file of what was sent and what came back.
        budget: over all starts of the run.
        servers: the model that each stage asks.
        threads: requests in flight at a time.
    """

    def __init__(
        self, ledger: Path, budget: Budget, servers: Mapping[str, ServedModel], threads: int
    ) -> None:
        self.totals: dict[str, dict[str, Any]] = {}
        self._waiting: dict[int, Future] = {}
        self._next = 0
        self._lock = threading.Lock()
        # In a session of its own it gets no signals that are for the run: Ctrl-C, or a kill of the
        # run's process group.
        self._process = subprocess.Popen(
            [sys.executable, '-m', __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._send(
            {
                'ledger': str(Path(ledger).resolve()),
                'budget': dataclasses.asdict(budget),
                'servers': {name: dataclasses.asdict(server) for name, server in servers.items()},
                'threads': threads,
            }
        )
        first = self._process.stdout.readline()
        if not first:
            raise UserError(f'The ledger {ledger} cannot be used; the reason stands above.')
        self.totals = json.loads(first)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def usd(self) -> float:
        """US dollars spent so far."""
        return sum(stage['usd'] for stage in self.totals.values())

    @property
    def calls(self) -> int:
        """Requests sent so far."""
        return sum(stage['calls'] for stage in self.totals.values())

    def ask(self, stage: str, request: Request) -> Reply | ToolFailure:
        """The stored reply to a request, or a new one, which is on disk when this returns.

        Raises:
            BudgetSpent: it was not sent, because the budget forbids it.
            UserError: the server does not say what a reply costs.
        """
        future: Future = Future()
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._waiting[number] = future
        try:
            self._send({'id': number, 'stage': stage, 'request': dataclasses.asdict(request)})
        except (OSError, ValueError):  # it ended, or it was closed
            self._waiting.pop(number, None)
            raise _ended() from None
        value = future.result()
        if 'error' in value:
            raise ERRORS[value['error']](value['message'])
        if 'failure' in value:
            return ToolFailure(**value['failure'])
        return Reply.of(value['reply'])

    def of(self, stage: str) -> StageModel:
        """The model of a stage."""
        return StageModel(self, stage)

    def close(self) -> None:
        """Waits for what is in flight and ends the process."""
        with self._lock:
            if not self._process.stdin.closed:
                self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _send(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b'\n'
        with self._lock:
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout:
            value = json.loads(line)
            self.totals = value['totals']
            self._waiting.pop(value['id']).set_result(value)
        for future in list(self._waiting.values()):
            future.set_exception(_ended())


@dataclasses.dataclass(frozen=True)
class StageModel:
    """The model of a stage, paid from the run's budget; a `ChatModel`."""

    requests: PaidRequests
    stage: str

    def ask(self, request: Request) -> Reply | ToolFailure:
        """See `PaidRequests.ask`."""
        return self.requests.ask(self.stage, request)


def _ended() -> UserError:
    return UserError(
        'The process that sends paid requests has ended, killed perhaps; start again with the same '
        '--workdir to go on.'
    )


class _Sender:
    """The process's side."""

    def __init__(self, settings: dict[str, Any]) -> None:
        threads = settings['threads']
        self.ledger = Ledger(Path(settings['ledger']), Budget(**settings['budget']))
        self.models = {
            name: OpenAIModel(ServedModel(**server), threads)
            for name, server in settings['servers'].items()
        }
        self.pool = ThreadPoolExecutor(threads)
        self._running: dict[str, list[int]] = {}
        self._lock, self._output_lock = threading.Lock(), threading.Lock()

    def take(self, line: bytes) -> None:
        """Begins a request of the run; one that is in flight already is not sent twice."""
        value = json.loads(line)
        asked = value['request']
        request = Request(**asked | {'stop': tuple(asked['stop'])})
        model = self.models[value['stage']]
        key = key_of(model.server, request)
        with self._lock:
            if key in self._running:
                self._running[key].append(value['id'])
                return
            self._running[key] = [value['id']]
        self.pool.submit(self._ask, value['stage'], model, key, request)

    def say(self, value: dict[str, Any]) -> None:
        """Writes a line to the run, if it still reads."""
        with self._output_lock, contextlib.suppress(OSError):  # it was killed
            sys.stdout.write(json.dumps(value) + '\n')
            sys.stdout.flush()

    def _ask(self, stage: str, model: OpenAIModel, key: str, request: Request) -> None:
        try:
            reply = self.ledger.reply(key)
            if reply is None:
                reply = model.ask(request, LedgerMeter(self.ledger, stage, key))
            name = 'reply' if isinstance(reply, Reply) else 'failure'
            result = {name: dataclasses.asdict(reply)}
        except (BudgetSpent, UserError) as error:
            result = {'error': type(error).__name__, 'message': str(error)}
        except Exception:  # a fault of the code, which the run raises in the thread that asked
            result = {'error': 'RuntimeError', 'message': traceback.format_exc()}
        with self._lock:
            waiting = self._running.pop(key)
        for number in waiting:
            self.say({'id': number, 'totals': self.ledger.totals(), **result})


def main() -> None:
    """Serves the run that started this process."""
    settings = json.loads(sys.stdin.buffer.readline())
    path = Path(settings['ledger'])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix('.lock'), 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('Waiting for the replies to what an earlier start had sent.', file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            sender = _Sender(settings)
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        sender.say(sender.ledger.totals())
        for line in sys.stdin.buffer:
            if not line.endswith(b'\n'):
                break  # the run was killed while it wrote
            sender.take(line)
        sender.ledger.close()
        sender.pool.shutdown(cancel_futures=True)


if __name__ == '__main__':
    main()
