"""The queue of tasks, to which more may be added: pictures are fetched ahead of their turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, SampleState, Trajectory
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.groups import Group, Task
from sensesearch_jax.rollout.scoring import put_score
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore


class ReadyTask(NamedTuple):
    """A task whose images are there, with the tokens of its prompt."""

    group: Group
    task: Task
    images: list[ImageRef]
    prompt: list[int]


@dataclass(eq=False)
class TaskQueue:
    """The tasks that no engine has taken yet, in the order in which they are taken.

    Args:
        ahead: tasks whose pictures are fetched at a time: enough to fill the engines and a pass
            through the tower.
        room: the engines' capacity for a prompt, in tokens.
        chat: turns prompts into tokens.
        environment: has the system prompt and the client that uploads pictures.
        features: of the pictures.
        pool: fetches the pictures.
        enough: whether a group of which some members have been sampled and scored needs no more.
    """

    ahead: int
    room: int
    chat: ChatTokenizer
    environment: Environment
    features: FeatureStore
    pool: ThreadPoolExecutor
    enough: Callable[[list[Trajectory]], bool] = lambda group: True

    def __post_init__(self):
        self.waiting: deque[tuple[Group, Task]] = deque()
        self.opening: dict[Future, tuple[Group, Task]] = {}  # first images on their way
        self.opened: deque[ReadyTask] = deque()
        self.lock = threading.Lock()
        self.news = Future()  # done, and replaced, as soon as something is new
        self.closed = self.stopped = False
        self._may_grow = 0  # groups that have not ended and may ask for more members

    def add(
        self,
        tasks: Iterable[Task],
        scorer: Scorer | None,
        on_group: Callable[[list[Trajectory]], None],
        *,
        urgent: bool = False,
    ) -> list[list[Trajectory]]:
        """Puts tasks behind the others.

        Args:
            tasks: in their order.
            scorer: of their trajectories; None leaves them unscored.
            on_group: called with each group when it has ended.
            urgent: whether they are put before the others.

        Returns:
            their groups, in the same order, which fill while they are sampled.
        """
        added = []
        for task in tasks:
            first, *later = task.parts()
            added.append((Group(scorer, on_group, deque(later)), first))
        with self.lock:
            self._may_grow += sum(bool(group.later) for group, _ in added)
            if urgent:
                self.waiting.extendleft(reversed(added))
            else:
                self.waiting.extend(added)
        self.wake()
        return [group.trajectories for group, _ in added]

    def close(self) -> None:
        """Says that no more tasks will come."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Ends the waiting of engines that have nothing to decode: something is new."""
        with self.lock:
            news, self.news = self.news, Future()
        news.set_result(None)

    @property
    def left(self) -> bool:
        """Whether tasks are still to be taken."""
        with self.lock:
            return bool(self.waiting or self.opening or self.opened) and not self.stopped

    @property
    def open(self) -> bool:
        """Whether more tasks may come, from outside or of a group that needs more members."""
        return not self.stopped and (not self.closed or self._may_grow > 0)

    @property
    def more_to_come(self) -> bool:
        """Whether more tasks will be ready than are now."""
        return bool(self.waiting or self.opening)

    @property
    def fetching(self) -> list[Future]:
        """The pictures that are being fetched."""
        with self.lock:
            return list(self.opening)

    def stop(self) -> None:
        """Ends the work of all engines soon, unfinished as it is."""
        self.stopped = True
        self.wake()

    def end(self, group: Group, failed: bool = False) -> None:
        """Hands on a group whose trajectories have ended and are scored, or asks for more of them.

        Args:
            group: of which none is under way.
            failed: whether its prompt cannot be had, so that more would fail as well.
        """
        if group.later:
            if not failed and not self.enough(group.trajectories):
                with self.lock:
                    self.waiting.appendleft((group, group.next_part()))
                    self._may_grow -= not group.later
                self.wake()
                return
            with self.lock:
                group.later.clear()
                self._may_grow -= 1
        group.finish()
        self.wake()

    def fetch(self) -> None:
        """Uploads and prepares the pictures of the next tasks.

        A task whose picture is not to be had, or whose prompt is too long, ends here.
        """
        failed = []
        with self.lock:
            while self.waiting and len(self.opening) + len(self.opened) < self.ahead:
                group, task = self.waiting.popleft()
                self.opening[self.pool.submit(self._ready, group, task)] = group, task
            for future in [f for f in self.opening if f.done()]:
                group, task = self.opening.pop(future)
                ready = future.result()
                if isinstance(ready, ReadyTask):
                    self.opened.append(ready)
                    continue
                state, why = ready
                lost = [
                    Trajectory(task.question, g, seed, [], state, [], [], {}, None, why)
                    for g, seed in enumerate(task.seeds, len(group.trajectories))
                ]
                group.trajectories += lost
                failed.append((group, lost))
        for group, lost in failed:
            for trajectory in lost:
                put_score(group.scorer, trajectory, 0.0)
            self.end(group, failed=True)

    def take(self, least: int, most: int) -> tuple[list[ReadyTask], list[ImageRef]]:
        """At most `most` ready tasks, none if fewer than `least`; and images of the next ones."""
        with self.lock:
            ready = min(most, len(self.opened))
            taken = [self.opened.popleft() for _ in range(ready if ready >= least else 0)]
            return taken, [image for ready in self.opened for image in ready.images]

    def _ready(self, group: Group, task: Task) -> ReadyTask | tuple[SampleState, str]:
        """On a tool thread: the task's images and prompt, or why there is none."""
        images = upload_all(self.environment.client, task.question.images)
        if isinstance(images, ToolFailure):
            return SampleState.INFRA_FAILED, f'The picture cannot be had: {images.message}.'
        parts = self.environment.user_parts(task.question, images)
        if isinstance(parts, ToolFailure):
            return SampleState.INFRA_FAILED, f'The prompt cannot be had: {parts.message}.'
        images = [part for part in parts if isinstance(part, ImageRef)]  # the question's come first
        if failure := next(filter(None, map(self.features.unusable, images)), None):
            return SampleState.INFRA_FAILED, failure
        prompt = self.chat.prompt(self.environment.system_prompt, parts)
        if len(prompt) - 1 > self.room:  # the last token is run with the first sampled ones
            of_images = ''.join(
                f', {self.chat.visual_tokens(image.width, image.height)} of them of a picture of '
                f'{image.width}×{image.height} pixels'
                for image in images
            )
            return SampleState.TOO_LONG, (
                f'A prompt of {len(prompt)} tokens{of_images}, is longer than '
                f'rollout.prompt_capacity {self.room}; raise that or lower max_pixels.'
            )
        for image in images:
            if failure := self.features.prepare(image):
                return SampleState.INFRA_FAILED, f'The picture cannot be had: {failure.message}.'
        return ReadyTask(group, task, images, prompt)
