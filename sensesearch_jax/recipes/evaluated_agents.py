"""Agents that can be evaluated: a policy that is sampled here, or a model behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx
from ml_collections import ConfigDict

from sensesearch_jax.agent.ledger import Budget
from sensesearch_jax.agent.openai_model import OpenAIAgent, ServedModel
from sensesearch_jax.agent.request_process import PaidRequests
from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.cold_start.spending import cost
from sensesearch_jax.evaluation.served_agent import Conditions, play_all
from sensesearch_jax.recipes.session import LoadedPolicy, Session
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import stopping
from sensesearch_jax.runtime.seeds import hash_seed

KINDS = 'policy', 'openai'
SERVED = 'evaluate'  # the stage of a served model's requests
Samples = Sequence[tuple[Question, int]]  # questions, each with the number of its sample


class Agent(Protocol):
    """Answers samples of questions; the environment, the limits and the scorer are the run's."""

    def play(self, samples: Samples, conditions: Conditions) -> None:
        """Plays and scores each of the samples."""

    def cost(self) -> dict[str, Any]:
        """The cost so far, for a progress bar; nothing where nothing is paid."""

    def described(self) -> dict[str, Any]:
        """Its kind and name, for the harness card."""


@dataclass(eq=False)
class PolicyAgent:
    """A policy that is sampled on this process's devices.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
        sampling: temperature, top-k and top-p.
        lanes: trajectories sampled at once by each replica of the policy.
        parameters: to sample with, and in whose dtype; the policy's own by default, in the config's
            `rollout.dtype`.
    """

    session: Session
    loaded: LoadedPolicy
    features: FeatureStore
    sampling: Sampling
    lanes: int
    parameters: nnx.State | None = None

    def play(self, samples: Samples, conditions: Conditions) -> None:
        """See `Agent`; the samples of a question share its prompt, and end together."""
        config = self.session.config
        members: dict[tuple[str, str], list[int]] = {}
        questions = {(q.source, q.id): q for q, _ in samples}
        for question, member in samples:
            members.setdefault((question.source, question.id), []).append(member)
        lanes = max(1, self.lanes // conditions.samples)
        engines = self.session.engines(
            self.loaded,
            asked=len(members),
            groups=lanes,
            members=conditions.samples,
            sampling=self.sampling,
            parameters=self.parameters,
        )

        def seed(question: Question, member: int) -> int:
            name = f'evaluate-{question.id}'
            return hash_seed(config.seed, f'{name}-{member}' if member else name)

        def note(group: list[Trajectory]) -> None:
            for trajectory in group:
                key = trajectory.question.source, trajectory.question.id
                trajectory.member = members[key][trajectory.member]
                conditions.on_sample(trajectory)

        tasks = [
            Task(questions[key], tuple(seed(questions[key], member) for member in of_question))
            for key, of_question in members.items()
        ]
        self.session.stream(
            engines,
            self.loaded,
            self.features,
            environment=conditions.environment,
            limits=conditions.limits,
            to_stop=stopping.ordered,
        ).sample(tasks, conditions.scorer, note)
        for engine in engines:
            engine.release()  # training, or the next policy, wants the memory

    def cost(self) -> dict[str, Any]:
        """See `Agent`."""
        return {}

    def described(self) -> dict[str, Any]:
        """See `Agent`."""
        rollout = self.session.config.rollout
        types = {'dtype': rollout.dtype, 'cache_dtype': rollout.cache_dtype}
        return {'kind': 'policy', 'policy': str(self.loaded.folder), **types}


class ServedAgent:
    """A model behind any OpenAI-compatible server, whose replies are paid for once.

    Args:
        session: of the run; `config.evaluate.agent` says where the model is.
        paid: sends the requests, those of stage `SERVED`.
    """

    def __init__(self, session: Session, paid: PaidRequests) -> None:
        self.session, self.paid = session, paid

    def play(self, samples: Samples, conditions: Conditions) -> None:
        """See `Agent`.

        Raises:
            BudgetSpent: some of the samples would cost more than `config.budget` has.
        """
        config = self.session.config
        agent = OpenAIAgent(
            self.paid.of(SERVED),
            conditions.environment.client.image,
            conditions.environment.system_prompt,
            config.evaluate.temperature,
            config.agent.turn_tokens,
        )
        play_all(samples, agent, conditions, config.evaluate.lanes)

    def cost(self) -> dict[str, Any]:
        """See `Agent`."""
        return cost(self.session.config, self.paid)

    def described(self) -> dict[str, Any]:
        """See `Agent`; with the requests of all starts, and their price where one is given."""
        server = self.session.config.evaluate.agent
        found = {'kind': 'openai', 'model': server.model, 'url': server.url}
        found |= {'requests': self.paid.calls} if self.paid.calls else {}
        return found | ({'usd': round(self.paid.usd, 4)} if self.paid.usd else {})


def paid_requests(config: ConfigDict, ledger: Path) -> PaidRequests:
    """The requests to the served model of a config; several processes share out its budget.

    Args:
        config: with `evaluate` and `budget`.
        ledger: file of this process.
    """
    processes = jax.process_count()
    budget = Budget(config.budget.usd / processes, -(-config.budget.calls // processes))
    servers = {SERVED: ServedModel.of(config.evaluate.agent)}
    return PaidRequests(ledger, budget, servers, config.evaluate.lanes)
