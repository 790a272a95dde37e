"""The ledger of a run's paid requests: every reply on disk before it is used, and a hard budget.

Its lines are {sent, stage} before an attempt and {of, usd, …} after it, with the reply and its
request's key or with the reason why there is none. An attempt without a second line was cut short by
the end of the process or the machine.

Money that may have been spent counts as spent: an attempt that the service may charge for although
no reply arrived costs as much as the dearest reply of its stage so far.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensesearch_jax.agent.openai_model import Reply, Request, ServedModel, Unanswered
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.journal import Journal


@dataclass(frozen=True)
class Budget:
    """The most that may be spent; 0 is no limit.

    Attributes:
        usd: US dollars, exceeded by one reply at most.
        calls: requests sent, retries included; never exceeded.
    """

    usd: float
    calls: int


class BudgetSpent(UserError):
    """The budget forbids a further request."""


@dataclass
class Spending:
    """The attempts of a stage."""

    calls: int = 0
    replies: int = 0
    usd: float = 0.0
    assumed_usd: float = 0.0  # of it, for attempts without a reply that may be charged for
    dearest_usd: float = 0.0
    longest_prompt: int = 0
    failed: dict[str, int] = dataclasses.field(default_factory=dict)  # attempts by kind of failure


def key_of(server: ServedModel, request: Request) -> str:
    """The name of a request: a hash of all that its reply depends on."""
    value = {'model': server.model, **dataclasses.asdict(request)}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The ledger of one process. Safe to share between threads.

    Args:
        path: of the file.
        budget: over all starts of the run.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.budget = budget
        self.stages: dict[str, Spending] = defaultdict(Spending)
        self._journal = Journal(path)
        self._replies: dict[str, Reply] = {}
        # attempt -> stage, most that it may cost
        self._in_flight: dict[int, tuple[str, float]] = {}
        self._next = 0
        self._closing = False
        self._changed = threading.Condition()
        for line in self._journal:
            self._read(line)
        for attempt in list(self._in_flight):  # of a process that ended before their replies came
            self._record(attempt, self._lost(attempt))

    @property
    def calls(self) -> int:
        """Requests sent."""
        return sum(stage.calls for stage in self.stages.values())

    @property
    def usd(self) -> float:
        """US dollars spent."""
        return math.fsum(stage.usd for stage in self.stages.values())

    def reply(self, key: str) -> Reply | None:
        """The stored reply to a request."""
        return self._replies.get(key)

    def admit(self, stage: str, server: ServedModel, request: Request) -> int:
        """Notes that an attempt is about to be made; waits while those in flight may spend the rest.

        A stage's first attempt is made alone, since nobody knows yet what one costs.

        Args:
            stage: that pays.
            server: that is asked.
            request: that is sent.

        Returns:
            The number of the attempt.

        Raises:
            BudgetSpent: it may not be made.
        """
        with self._changed:
            while True:
                if self._closing:
                    raise BudgetSpent('The run has ended.')
                if self.budget.calls and self.calls >= self.budget.calls:
                    raise BudgetSpent(self._spent('calls', f'{self.calls:,} requests were sent'))
                if not self.budget.usd or not (server.input_usd or server.output_usd):
                    most = 0.0
                    break
                if self.usd >= self.budget.usd:
                    raise BudgetSpent(self._spent('usd', f'{self.usd:.4f} US dollars were spent'))
                longest = self.stages[stage].longest_prompt
                written = request.max_tokens * request.choices
                most = server.cost(2 * longest, written) if longest else math.inf
                reserved = sum(cost for _, cost in self._in_flight.values())
                if not self._in_flight or self.usd + reserved + most <= self.budget.usd:
                    break
                self._changed.wait()
            attempt = self._next
            line = {'sent': attempt, 'stage': stage}
            self._read(line)
            self._in_flight[attempt] = stage, most
            self._journal.append(line, sync=False)
        return attempt

    def settle(
        self, attempt: int, server: ServedModel, key: str, outcome: Reply | Unanswered
    ) -> None:
        """Notes what came of an attempt; a reply is on disk when this returns.

        Args:
            attempt: its number.
            server: that was asked.
            key: of the request.
            outcome: of the attempt.

        Raises:
            UserError: the server does not say what a reply costs, so that a budget cannot be kept.
        """
        stage = self.stages[self._in_flight[attempt][0]]
        if isinstance(outcome, Unanswered):
            usd = stage.dearest_usd if outcome.billable else 0.0
            self._record(attempt, {'usd': usd, 'failed': outcome.failure.kind})
            return
        counted = outcome.prompt_tokens is not None
        usd = server.cost(outcome.prompt_tokens, outcome.completion_tokens) if counted else 0.0
        self._record(attempt, {'usd': usd, 'key': key, 'reply': dataclasses.asdict(outcome)})
        if not counted and self.budget.usd and (server.input_usd or server.output_usd):
            raise UserError(
                f'The service of {server.model} does not count tokens (no usage), so that '
                'budget.usd cannot be kept; set budget.calls, and budget.usd to 0.'
            )

    def close(self) -> None:
        """Admits nothing more; attempts in flight may still be settled."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def totals(self) -> dict[str, Any]:
        """Spending by stage, as JSON."""
        with self._changed:
            return {name: dataclasses.asdict(stage) for name, stage in self.stages.items()}

    def _record(self, attempt: int, result: dict[str, Any]) -> None:
        line = {'of': attempt, **result}
        self._journal.append(line, sync=True)
        with self._changed:
            self._read(line)
            self._changed.notify_all()

    def _lost(self, attempt: int) -> dict[str, Any]:
        stage = self._in_flight[attempt][0]
        return {'usd': self.stages[stage].dearest_usd, 'failed': 'cut_short'}

    def _read(self, line: dict[str, Any]) -> None:
        if 'sent' in line:
            self.stages[line['stage']].calls += 1
            self._in_flight[line['sent']] = line['stage'], math.inf
            self._next = line['sent'] + 1
            return
        stage = self.stages[self._in_flight.pop(line['of'])[0]]
        stage.usd += line['usd']
        if 'failed' in line:
            stage.assumed_usd += line['usd']
            stage.failed[line['failed']] = stage.failed.get(line['failed'], 0) + 1
            return
        reply = Reply.of(line['reply'])
        self._replies[line['key']] = reply
        stage.replies += 1
        stage.dearest_usd = max(stage.dearest_usd, line['usd'])
        stage.longest_prompt = max(stage.longest_prompt, reply.prompt_tokens or 0)

    def _spent(self, field: str, what: str) -> str:
        limit = getattr(self.budget, field)
        return (
            f'budget.{field} {limit:,} is spent: {what}. All that was paid for is kept; raise the '
            'field and start again with the same --workdir to go on.'
        )


@dataclass
class LedgerMeter:
    """The meter of one request's attempts."""

    ledger: Ledger
    stage: str
    key: str
    attempt: int = -1

    def admit(self, server: ServedModel, request: Request) -> None:
        """See `Meter`."""
        self.attempt = self.ledger.admit(self.stage, server, request)

    def settle(self, server: ServedModel, request: Request, outcome: Reply | Unanswered) -> None:
        """See `Meter`.

        Args:
            server: that was asked.
            request: that was sent.
            outcome: of the attempt.
        """
        self.ledger.settle(self.attempt, server, self.key, outcome)
