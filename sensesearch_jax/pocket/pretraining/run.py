"""Trains the pocket base policy from nothing: it learns to see, to read, to copy and to write tool calls
of any tools, and neither the project's tools nor held-out entities.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from flax import nnx

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import save_policy
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.curriculum import Batch, Curriculum
from sensesearch_jax.pocket.pretraining.initial_policy import write_first
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.policy_with_probes import PolicyWithProbes
from sensesearch_jax.pocket.pretraining.stages import Stages
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.runtime import stopping
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.checkpointing import Checkpoints, Kept
from sensesearch_jax.training.optimizer import decays, finite_update

LOGGED_EVERY = 20  # steps


def prefetch(batches: Iterator[Any], ahead: int = 3) -> Iterator[Any]:
    """Makes batches on a thread while the device works; the thread's errors are the reader's."""
    ready: queue.Queue = queue.Queue(ahead)

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except Exception as error:
            # handed over: a silent thread would leave the reader waiting for ever
            ready.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch = ready.get()
        if isinstance(batch, Exception):
            raise batch
        yield batch


class Trainer:
    """The policy with its optimiser: gradients of one batch after another, then an update.

    Args:
        policy: to train; it stays as it is.
        config: of configs/base.py.
    """

    def __init__(self, policy, config: ml_collections.ConfigDict):
        self.graph, parameters = nnx.split(
            PolicyWithProbes(policy, tuple(config.probe_layers), config.seed)
        )
        self.schedule = Stages(config.stages).learning_rate(config.warmup)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(self.schedule, b2=0.98, weight_decay=config.weight_decay, mask=decays),
        )
        self.state = {'parameters': parameters, 'optimizer': optimizer.init(parameters)}

        def gradients(parameters, batch, probe_weight, freeze_tower, so_far):
            def value(p):
                return nnx.merge(self.graph, p).loss(batch, probe_weight, freeze_tower)

            found, parts = jax.grad(value, has_aux=True)(parameters)
            return jax.tree.map(lambda a, b: a + b, so_far, found), parts

        def update(state, gradients, lessons, freeze_tower):
            mean = jax.tree.map(lambda x: x / lessons, gradients)
            parameters, moments, norms = finite_update(
                sparing_tower(optimizer) if freeze_tower else optimizer,
                state['parameters'],
                state['optimizer'],
                mean,
            )
            return {'parameters': parameters, 'optimizer': moments}, norms

        self._gradients = jax.jit(gradients, static_argnums=3, donate_argnums=4)
        self._update = jax.jit(update, static_argnums=3, donate_argnums=0)
        self._correct = jax.jit(lambda p, batch: nnx.merge(self.graph, p).correct(batch))
        self._zeros = jax.jit(lambda p: jax.tree.map(lambda x: 0 * x, p))

    def step(
        self, lessons: list[tuple[str, Batch]], probe_weight: float, freeze_tower: bool
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One update; the losses of each lesson, and the norms.

        Args:
            lessons: with their names.
            probe_weight: of the dense targets.
            freeze_tower: whether the vision tower stays as it is.
        """
        gradients, losses = self._zeros(self.state['parameters']), {}
        for name, batch in lessons:
            gradients, parts = self._gradients(
                self.state['parameters'], batch, probe_weight, freeze_tower, gradients
            )
            losses |= {f'{part}/{name}': value for part, value in parts.items()}
        self.state, norms = self._update(self.state, gradients, float(len(lessons)), freeze_tower)
        return {name: float(value) for name, value in losses.items()}, {
            name: float(value) for name, value in norms.items()
        }

    def correct(self, batch: Batch) -> np.ndarray:
        """See `PolicyWithProbes.correct`."""
        return np.asarray(self._correct(self.state['parameters'], batch))

    def policy(self):
        """The policy as it is now."""
        return nnx.merge(self.graph, self.state['parameters']).policy


def run(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    """Goes through `config.stages` and writes `workdir`/policy; goes on from the last checkpoint.

    Raises:
        Stopped: `config.max_minutes` are over, or the process was told to stop; the state is saved.
        UserError: a mistake in the stages, or several steps in a row without finite gradients.
    """
    folder, files = workdir / 'policy', PocketFiles()
    pages, world = Pages(files), InventedWorld(files, 'train', config.seed)
    # Before anything is written, so that a mistake in the stages leaves nothing behind.
    stages = Stages(config.stages)
    steps = stages.steps
    policy = write_first(folder, config, pages, world)
    curriculum = Curriculum(config, folder, policy.sizes, files, pages, world)
    trainer = Trainer(policy, config)
    held_out = examination(config, curriculum)
    began, saved = time.monotonic(), time.monotonic()
    with (
        stopping.between_steps(),
        Checkpoints(workdir / 'checkpoints', Kept(last=1, every=0, best=0)) as checkpoints,
        MetricWriter(workdir / 'metrics.jsonl') as metrics,
    ):
        restored = checkpoints.restore(trainer.state)
        start = 0
        if restored is not None:
            start, trainer.state = restored.step, restored.arrays
        metrics.resume('base', start)

        def save(step: int) -> None:
            checkpoints.save(step, trainer.state)
            save_policy(trainer.policy(), folder, dtype=config.dtype)

        log, skipped = Log(), 0
        batches = prefetch(curriculum.batches(config.seed, start))
        with Progress('base policy', steps, initial=start) as bar:
            for step in range(start, steps):
                stage = stages.at(step)
                with log.waiting():
                    lessons = [next(batches) for _ in range(stage.lessons_per_step)]
                weight = stages.probe_weight(step)
                losses, norms = trainer.step(lessons, weight, stage.freeze_tower)
                skipped = 0 if np.isfinite(norms['grad_norm']) else skipped + 1
                if skipped >= config.max_skipped_updates:
                    raise UserError(
                        f'The gradients of the last {skipped} steps, up to step {step + 1}, were not finite '
                        '(max_skipped_updates); start anew with smaller learning rates. '
                        f'{checkpoints.directory} holds an earlier state.'
                    )
                if not skipped:
                    log.add(losses, norms, lessons)
                bar.update(**log.shown())
                done, now = step + 1, time.monotonic()
                if done % LOGGED_EVERY == 0:
                    metrics.write(
                        'base', done, log.take() | {'learning_rate': float(trainer.schedule(step))}
                    )
                out_of_time = 0 < config.max_minutes <= (now - began) / 60
                stop = stopping.ordered() or (out_of_time and 'max_minutes')
                if done % config.evaluate_every == 0 or done == steps:
                    metrics.write('base', done, accuracy(curriculum, trainer, held_out))
                late = now - saved > 60 * config.checkpoint_minutes
                if done == steps or stop or late and not skipped:
                    save(done)
                    saved = now
                if stop and done < steps:
                    raise stopping.Stopped(stop)


class Log:
    """Losses, norms and the cost of steps since it was last read."""

    def __init__(self):
        self._values: dict[str, list[float]] = defaultdict(list)
        self._mean: dict[str, float] = {}
        self._started = time.monotonic()
        self._waited, self._used, self._padded = 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within `with` as waiting for batches."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    def add(
        self, losses: dict[str, float], norms: dict[str, float], lessons: list[tuple[str, Batch]]
    ) -> None:
        """A step's losses, norms and batches."""
        for name, value in (losses | norms).items():
            self._values[name].append(value)
        for name, value in losses.items():
            part = name.split('/')[0]
            self._mean[part] = 0.95 * self._mean.get(part, value) + 0.05 * value
        for _, batch in lessons:
            groups = batch.groups
            self._used += int(groups.prompt_valid.sum() + groups.valid.sum())
            self._padded += groups.padded_tokens

    def shown(self) -> dict[str, float]:
        """Smoothed losses for the progress line."""
        return {name: value for name, value in self._mean.items() if name.endswith('loss')}

    def take(self) -> dict[str, float]:
        """Means since the last time."""
        seconds = time.monotonic() - self._started
        found = {name: float(np.mean(values)) for name, values in self._values.items()}
        found |= {
            'tokens_per_second': self._used / seconds,
            'padding_share': 1 - self._used / max(self._padded, 1),
            'waiting_share': self._waited / seconds,
        }
        self._values.clear()
        self._started, self._waited, self._used, self._padded = time.monotonic(), 0.0, 0, 0
        return found


def sparing_tower(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser without the vision tower's updates: without a gradient it would still decay."""

    def update(gradients, moments, parameters):
        updates, moments = optimizer.update(gradients, moments, parameters)

        def one(path, x):
            names = [getattr(key, 'key', getattr(key, 'name', key)) for key in path]
            return 0 * x if 'vision' in names else x

        return jax.tree_util.tree_map_with_path(one, updates), moments

    return optax.GradientTransformation(optimizer.init, update)


def examination(
    config: ml_collections.ConfigDict, curriculum: Curriculum
) -> list[tuple[str, Batch]]:
    """Batches of every lesson of any stage, of a seed that no step draws from."""
    rng = np.random.default_rng(config.seed + 1_000_000)
    names = sorted({name for stage in Stages(config.stages).stages for name in stage.lessons})
    return [(name, curriculum.lessons[name](rng)) for name in names]


def accuracy(
    curriculum: Curriculum, trainer: Trainer, batches: list[tuple[str, Batch]]
) -> dict[str, float]:
    """Share of turns that are right to the last token, by lesson.

    Args:
        curriculum: that made the batches.
        trainer: of the policy.
        batches: with the names of their lessons.
    """
    found: dict[str, list[bool]] = {}
    for name, batch in batches:
        right = trainer.correct(batch)
        response = np.asarray(batch.groups.response_mask)[:, :, 1:]
        for b, g in zip(*np.nonzero(response.any(-1))):
            # An answer is a run of response tokens; a dialogue has several.
            edges = np.flatnonzero(np.diff(np.concatenate([[0], response[b, g].astype(int), [0]])))
            found.setdefault(f'right/{name}', []).extend(
                bool(right[b, g, first:last].all()) for first, last in zip(edges[::2], edges[1::2])
            )
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}
