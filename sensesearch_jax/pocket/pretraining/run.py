"""Trains the pocket base policy from nothing: it learns to see, read and copy, and neither protocol
nor test entities.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
from sensesearch_jax.pocket.pretraining.curriculum import Batch, Curriculum
from sensesearch_jax.pocket.pretraining.initial_policy import write_untrained
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.policy_with_probes import PolicyWithProbes
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.checkpointing import Checkpoints
from sensesearch_jax.training.optimizer import decays, finite_update


def prefetch(batches: Iterator[Batch], ahead: int = 3) -> Iterator[Batch]:
    """Makes batches on a thread while the device works; an error of the thread is raised to the
    reader.
    """
    ready: queue.Queue = queue.Queue(ahead)

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except (
            Exception
        ) as error:  # handed over: a silent thread would leave the reader waiting for ever
            ready.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch = ready.get()
        if isinstance(batch, Exception):
            raise batch
        yield batch


def run(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    """Trains for `config.steps` and writes `workdir`/policy; goes on from the last checkpoint after
    an interruption.

    A `config.policy` has had the first `config.first_step` steps already: the rest of the
    curriculum starts from it.
    """
    folder, files = workdir / 'policy', PocketFiles()
    pages = Pages(files)
    policy = write_untrained(folder, config, pages)
    if config.policy:
        policy = load_policy(config.policy)
    curriculum = Curriculum(config, folder, policy.sizes, files, pages)
    graph, parameters = nnx.split(PolicyWithProbes(policy, tuple(config.probe_layers), config.seed))
    plain_steps, schedule = config.steps - sum(later_steps(config)), learning_rate(config)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decays),
    )
    state = {
        'parameters': parameters,
        'optimizer': at_step(optimizer.init(parameters), config.first_step),
    }

    def step(state, batch, probe_weight):
        def value(p):
            return nnx.merge(graph, p).loss(batch, probe_weight)

        gradients, parts = jax.grad(value, has_aux=True)(state['parameters'])
        after, moments, norms = finite_update(
            optimizer, state['parameters'], state['optimizer'], gradients
        )
        return {'parameters': after, 'optimizer': moments}, parts, norms

    step = jax.jit(step, donate_argnums=0)
    correct = jax.jit(lambda parameters, batch: nnx.merge(graph, parameters).correct(batch))
    evaluation_rng = np.random.default_rng(config.seed + 1_000_000)
    evaluation = [
        ('', curriculum.picture_batch(evaluation_rng, attribute_focus=i % 2 == 1))
        for i in range(12)
    ]
    for kind, maker, lengths in (
        ('read', curriculum.reading, config.page_lengths),
        ('search', curriculum.search_dialogues, config.search_dialogue_lengths),
    ):
        evaluation += [
            (f'{kind} {n}', curriculum.page_batch(evaluation_rng, n, maker))
            for n in lengths
            for _ in range(2)
        ]
    evaluation += [
        (
            'search in a format',
            curriculum.page_batch(
                evaluation_rng,
                max(config.search_dialogue_lengths),
                partial(curriculum.search_dialogues, formatted=True),
            ),
        )
        for _ in range(2)
    ]
    evaluation += [
        ('picture in a format', curriculum.picture_batch(evaluation_rng, stage=2)) for _ in range(4)
    ]
    evaluation += [('zoom', curriculum.zoom_batch(evaluation_rng)) for _ in range(4)]
    mean: dict[str, float] = {}
    skipped = in_a_row = 0  # updates that were not finite and not made
    with (
        Checkpoints(workdir / 'checkpoints', keep=1) as checkpoints,
        MetricWriter(workdir / 'metrics.jsonl') as metrics,
    ):
        start, restored = config.first_step, checkpoints.restore(state)
        earlier = Path(config.policy).parent / 'checkpoints'
        if restored is None and config.policy and earlier.is_dir():
            with Checkpoints(
                earlier
            ) as last:  # its probes and moments; new ones would shake what is there
                restored = last.restore(state, config.first_step)
        if restored is not None:
            start, state = restored.step, restored.arrays
        metrics.resume('base', start)
        with Progress('base policy', config.steps, initial=start) as bar:
            for i, batch in zip(
                range(start, config.steps), prefetch(curriculum.batches(config.seed, start))
            ):
                weight = config.probe_weight * max(0.1, 1 - i / max(0.7 * plain_steps, 1))
                if i >= config.steps - config.attribute_steps:
                    weight = config.attribute_probe_weight
                state, parts, norms = step(state, batch, weight)
                finite = np.isfinite(norms['grad_norm'])
                skipped, in_a_row = skipped + (not finite), 0 if finite else in_a_row + 1
                if in_a_row >= config.max_skipped_updates:
                    if (made := i + 1 - in_a_row) > max(
                        checkpoints.latest_step() or 0, config.first_step
                    ):
                        checkpoints.save(made, state)
                    raise UserError(
                        f'The gradients of the last {in_a_row} steps, up to step {i + 1}, were not finite '
                        '(max_skipped_updates); start anew with smaller learning rates. '
                        f'{checkpoints.directory} holds the state before them.'
                    )
                for name, value in parts.items() if finite else ():
                    mean[name] = 0.95 * mean.get(name, float(value)) + 0.05 * float(value)
                bar.update(**mean)
                if (i + 1) % 100 == 0:
                    metrics.write(
                        'base',
                        i + 1,
                        mean | norms | {'learning_rate': schedule(i), 'skipped_updates': skipped},
                    )
                    skipped = 0
                if (i + 1) % config.evaluate_every == 0 or i + 1 == config.steps:
                    metrics.write(
                        'base',
                        i + 1,
                        accuracy(curriculum, lambda b: correct(state['parameters'], b), evaluation),
                    )
                    checkpoints.save(i + 1, state)
                    save_policy(
                        nnx.merge(graph, state['parameters']).policy, folder, dtype=config.dtype
                    )


def later_steps(config: ml_collections.ConfigDict) -> list[int]:
    """Steps of the parts of the curriculum that come after the plain one."""
    return [config.cloze_steps, config.formatted_steps, config.zoom_steps, config.attribute_steps]


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """One cosine after another, for each part of the curriculum that has any steps.

    Raises:
        UserError: no part has, or one has fewer than none.
    """
    later = later_steps(config)
    rates = [
        config.learning_rate,
        config.cloze_learning_rate,
        config.formatted_learning_rate,
        config.zoom_learning_rate,
        config.attribute_learning_rate,
    ]
    stages = [
        (rate, steps)
        for rate, steps in zip(rates, [config.steps - sum(later), *later], strict=True)
        if steps
    ]
    if not stages or min(steps for _, steps in stages) < 0:
        raise UserError(
            f'steps is {config.steps}, and those of the later parts of the curriculum are {sum(later)} of them; '
            'give at least one in all, and none below 0.'
        )

    def cycle(rate, steps):
        return optax.warmup_cosine_decay_schedule(
            0, rate, min(config.warmup, steps // 2), steps, rate * 0.02
        )

    return optax.join_schedules(
        [cycle(*stage) for stage in stages],
        list(itertools.accumulate(steps for _, steps in stages[:-1])),
    )


def at_step(moments: optax.OptState, step: int) -> optax.OptState:
    """An optimiser's fresh state with its counters at `step`, where its schedules go on."""
    return jax.tree.map(lambda x: jnp.full_like(x, step) if x.dtype == jnp.int32 else x, moments)


def accuracy(
    curriculum: Curriculum, correct, evaluation: list[tuple[str, Batch]]
) -> dict[str, float]:
    """Share of answers that are right to the last token, by what is asked, on held-out examples
    of training entities.

    Args:
        curriculum: that made the batches.
        correct: batch -> which tokens are right, [B, G, S−1].
        evaluation: batches with their name; those without are named by how their questions begin.
            Of search dialogues, whose answers may be worded in many ways, single tokens are
            counted.
    """
    found: dict[str, list[float]] = {}
    for name, batch in evaluation:
        right = np.asarray(correct(batch))
        response = np.asarray(batch.groups.response_mask)[:, :, 1:]
        for b, g in zip(*np.nonzero(response.any(-1))):
            words = curriculum.chat.decode(
                batch.groups.tokens[b, g][batch.groups.valid[b, g]]
            ).split()
            label = name or ' '.join(words[:2]).lower().strip('?')
            # An answer is a run of response tokens; a dialogue has several.
            edges = np.flatnonzero(np.diff(np.concatenate([[0], response[b, g].astype(int), [0]])))
            for first, last in zip(edges[::2], edges[1::2]):
                answer = right[b, g, first:last]
                found.setdefault(f'right/{label}', []).append(
                    float(answer.mean() if name.startswith('search') else answer.all())
                )
    return {
        name: float(np.mean(values)) for name, values in sorted(found.items()) if len(values) >= 8
    }
