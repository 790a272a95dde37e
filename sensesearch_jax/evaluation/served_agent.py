"""Trajectories of a model behind an OpenAI-compatible server, in the policy's own environment.

The loop is that of the sampler: the same prompt, protocol, tools, limits and scorer, so that a
served model's row and a policy's come from one harness. What differs is that a served model's
tokens are not known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.openai_model import OpenAIAgent
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, SampleState, Trajectory, Turn
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.scheduler import RolloutLimits


@dataclass(frozen=True)
class Conditions:
    """Conditions that all samples of a run share.

    Attributes:
        samples: that a question has, played or not.
        environment: executes the calls.
        limits: of a trajectory.
        scorer: of every trajectory.
        on_sample: is given each scored trajectory in the order in which they end, one at a time.
    """

    samples: int
    environment: Environment
    limits: RolloutLimits
    scorer: Scorer
    on_sample: Callable[[Trajectory], None]


def play(
    question: Question,
    agent: OpenAIAgent,
    environment: Environment,
    limits: RolloutLimits,
    member: int,
) -> Trajectory:
    """One trajectory, without its score.

    Args:
        question: that is asked.
        agent: the served model, with the environment's system prompt.
        environment: executes the calls.
        limits: of a trajectory.
        member: which of the question's samples.

    Returns:
        A trajectory in state OK (answered), TRUNCATED or INFRA_FAILED. Never raises for a failure.
    """
    trajectory = Trajectory(question, member, member, [], SampleState.TRUNCATED, [], [], {}, None)

    def failed(why: str) -> Trajectory:
        trajectory.state, trajectory.failure = SampleState.INFRA_FAILED, why
        return trajectory

    images = upload_all(environment.client, question.images)
    if isinstance(images, ToolFailure):
        return failed(f'The picture cannot be had: {images.message}.')
    user = environment.user_parts(question, images)
    if isinstance(user, ToolFailure):
        return failed(f'The search before the first turn failed: {user.message}.')
    trajectory.images = [part for part in user if isinstance(part, ImageRef)]
    while True:
        reply = agent.write(user, trajectory.turns, member)
        if isinstance(reply, ToolFailure):
            return failed(reply.message)
        action = environment.parse(reply.text).action
        turn = Turn([], [], reply.text, action, None, [])
        trajectory.turns.append(turn)
        if isinstance(action, Answer):
            trajectory.state, trajectory.answer = SampleState.OK, action.text
            return trajectory
        if limits.reached(trajectory.turns):
            return trajectory  # the state stays TRUNCATED
        turn.observation = environment.execute(action, indexed_images(images, trajectory.turns))
        if turn.observation.infra_failed:
            return failed(' '.join(p for p in turn.observation.parts if isinstance(p, str)))
        trajectory.images += [p for p in turn.observation.parts if isinstance(p, ImageRef)]


def play_all(
    samples: Sequence[tuple[Question, int]],
    agent: OpenAIAgent,
    conditions: Conditions,
    threads: int,
) -> None:
    """Plays and scores samples side by side.

    Args:
        samples: questions, each with the number of its sample.
        agent: see `play`.
        conditions: that all of them share.
        threads: trajectories at a time.
    """
    one_at_a_time = threading.Lock()

    def work(sample: tuple[Question, int]) -> None:
        environment, limits = conditions.environment, conditions.limits
        trajectory = play(sample[0], agent, environment, limits, sample[1])
        trajectory.reward, trajectory.state = conditions.scorer.score(trajectory)
        with one_at_a_time:
            conditions.on_sample(trajectory)

    with ThreadPoolExecutor(threads, thread_name_prefix='evaluate') as pool:
        try:
            for _ in pool.map(work, samples):
                pass
        finally:  # nothing more is asked, and paid for, when a sample cannot be kept
            pool.shutdown(wait=False, cancel_futures=True)
