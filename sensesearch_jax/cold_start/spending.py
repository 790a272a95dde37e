"""The served models of a cold start, what they may cost and what they have cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.agent.ledger import Budget
from sensesearch_jax.agent.openai_model import ServedModel
from sensesearch_jax.agent.request_process import PaidRequests
from sensesearch_jax.errors import UserError

STAGES = ('mine', 'expert', 'validate')


def served_models(config: ConfigDict) -> dict[str, ServedModel]:
    """The served model of each stage that has one."""
    return {name: ServedModel.of(config[name]) for name in STAGES if config[name].kind == 'openai'}


@contextlib.contextmanager
def paid_requests(
    config: ConfigDict, ledger: Path, processes: int
) -> Iterator[PaidRequests | None]:
    """The requests to all served models of a config; None if it has none.

    Args:
        config: with the stages and the budget.
        ledger: file of this process.
        processes: that share out the budget.

    Raises:
        UserError: fewer calls than processes.
    """
    servers = served_models(config)
    if not servers:
        yield None
        return
    budget = Budget(config.budget.usd / processes, config.budget.calls // processes)
    if config.budget.calls and not budget.calls:
        raise UserError(
            f'budget.calls {config.budget.calls} is less than one for each of {processes} processes; '
            'raise it.'
        )
    threads = max(config.mine.threads, config.expert.threads)
    with PaidRequests(ledger, budget, servers, threads) as paid:
        yield paid


def cost(config: ConfigDict, paid: PaidRequests | None) -> dict[str, Any]:
    """The cost so far, for a progress bar."""
    if paid is None:
        return {}
    usd, calls = config.budget.usd, config.budget.calls
    return {
        'usd': f'{paid.usd:.2f}' + (f'/{usd:g}' if usd else ''),
        'calls': f'{paid.calls}' + (f'/{calls}' if calls else ''),
    }
