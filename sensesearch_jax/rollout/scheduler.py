"""Drives rollouts: decodes on the device while tools answer on threads, a lane at a time through
its turns.

Several engines take their questions from one queue, each in a thread of its own. A `Stream` samples
given tasks, or gets more of them, and newer weights, while it goes on.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flax import nnx

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.trajectory import Trajectory, Turn
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.lanes import Lanes, RolloutLimits, RolloutStatistics, Weights
from sensesearch_jax.rollout.scoring import Scoring
from sensesearch_jax.rollout.task_queue import TaskQueue
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.threads import parallel_map


class Stream:
    """Rollouts of given tasks (`sample`), or of such as come while others are under way.

    Args:
        engines: one, or several that work through the tasks side by side (`Engine.twin`), on the
            same devices or each on its own, with the parameters to sample from.
        chat: turns prompts and responses into tokens.
        environment: executes the calls.
        features: of the images.
        limits: of a trajectory.
        tool_threads: most tool calls at a time.
        judge_threads: most verdicts that are asked for at a time.
        on_turn: called with each finished turn, its observation included, one call at a time.
        on_tokens: called with the tokens so far of a turn that is being written; likewise.
        to_stop: asked all the time; once it is true, what is not finished is given up.
        enough: whether a group needs no more members than it has; asked of tasks that are sampled
            some members at a time.
    """

    def __init__(
        self,
        engines: Engine | Sequence[Engine],
        chat: ChatTokenizer,
        environment: Environment,
        features: FeatureStore,
        limits: RolloutLimits,
        *,
        tool_threads: int,
        judge_threads: int,
        on_turn: Callable[[Trajectory, Turn], None] = lambda trajectory, turn: None,
        on_tokens: Callable[[Trajectory, list[int]], None] = lambda trajectory, tokens: None,
        to_stop: Callable[[], object] = lambda: False,
        enough: Callable[[list[Trajectory]], bool] = lambda group: True,
    ):
        engines = [engines] if isinstance(engines, Engine) else list(engines)
        pool = ThreadPoolExecutor(tool_threads, thread_name_prefix='tools')
        judges = ThreadPoolExecutor(judge_threads, thread_name_prefix='judge')
        self._pools, self._one_at_a_time = (pool, judges), threading.RLock()
        self._weights: list[Weights | None] = [None] * len(engines)  # of each engine
        self.features, meshes = features, {engine.mesh for engine in engines}
        features.place(meshes)  # now, while no engine is at work
        self.queue = TaskQueue(
            sum(engine.groups for engine in engines) + len(meshes) * features.batch,
            engines[0].prompt_capacity,
            chat,
            environment,
            features,
            pool,
            enough,
        )
        self._runs = [
            Lanes(
                self.queue,
                engine,
                chat,
                environment,
                features,
                limits,
                pool,
                Scoring(judges),
                self._in_turn(on_turn),
                self._in_turn(on_tokens),
                to_stop,
                functools.partial(self._newest, i),
            )
            for i, engine in enumerate(engines)
        ]
        self._told = self._costs()

    def sample(
        self,
        tasks: Iterable[Task],
        scorer: Scorer | None,
        on_group: Callable[[list[Trajectory]], None] = lambda group: None,
    ) -> tuple[list[list[Trajectory]], RolloutStatistics]:
        """Samples every task's trajectories, and none after these.

        A step of `features` begins, to which the update on the trajectories belongs.

        Args:
            tasks: each, or what is sampled of it at a time, with as many seeds as the engines have
                members, or fewer.
            scorer: of every trajectory; None leaves them unscored.
            on_group: called with each finished and scored group, in the order in which they finish,
                one call at a time.

        Returns:
            the groups in the order of the tasks, and what it cost. Unscored, a state is OK
            (answered), TRUNCATED, INFRA_FAILED or TOO_LONG: its prompt, or a tool's response, is
            longer than all of the engines' capacity.
        """
        self.features.begin_step()
        groups = self.add(tasks, scorer, on_group)
        self.queue.close()
        self.run()
        return groups, self.cost()

    def add(
        self,
        tasks: Iterable[Task],
        scorer: Scorer | None,
        on_group: Callable[[list[Trajectory]], None],
        *,
        urgent: bool = False,
    ) -> list[list[Trajectory]]:
        """Adds tasks.

        Args:
            tasks: in the order in which they are taken, behind those that are there.
            scorer: of their trajectories; None leaves them unscored.
            on_group: called with each of their groups when it has ended, one call at a time.
            urgent: whether they are put before those that are there.

        Returns:
            their groups, in the same order, which fill while they are sampled.
        """
        return self.queue.add(tasks, scorer, self._in_turn(on_group), urgent=urgent)

    def set_weights(self, parameters: Sequence[nnx.State], version: int) -> None:
        """Weights for all turns that begin from now on. Those under way are ended with the weights that
        they were begun with, and what the caches hold is not run again.

        Args:
            parameters: of each engine.
            version: of them all, other than that of the last ones.
        """
        self._weights = [Weights(each, version) for each in parameters]
        self.queue.wake()

    def run(self) -> None:
        """Works until the queue is closed and all is done, or it is stopped."""
        try:
            parallel_map(Lanes.loop, self._runs, len(self._runs), self.queue.stop)
        finally:
            for threads in self._pools:
                threads.shutdown(wait=False, cancel_futures=True)

    def cost(self) -> RolloutStatistics:
        """Costs since this was last asked."""
        before, self._told = self._told, self._costs()
        times = [s for run in self._runs for s in run.turn_seconds()]
        return RolloutStatistics(*(now - then for now, then in zip(self._told, before)), times)

    def _newest(self, engine: int) -> Weights | None:
        return self._weights[engine]

    def _costs(self) -> tuple[float, ...]:
        parts, count = [run.statistics for run in self._runs], len(self._runs)
        return (
            time.monotonic(),
            sum(p.waiting_for_tools for p in parts) / count,
            sum(p.waiting_for_judge for p in parts) / count,
            sum(p.sampled_tokens for p in parts),
            sum(run.engine.tokens_run for run in self._runs),
        )

    def _in_turn(self, hook: Callable) -> Callable:
        def call(*arguments):
            with self._one_at_a_time:
                hook(*arguments)

        return call
