"""Where a step of the base policy's training spends its time, by lesson, as a table.

    python -m sensesearch_jax.pocket.pretraining.step_cost

Processor seconds of a batch: making it, its gradient, and of the gradient what attention, output head
and vision tower take (each measured by leaving it out); and the share of padding. On one core:
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 taskset -c 0` before it.
"""

from __future__ import annotations

import runpy
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining import policy_with_probes
from sensesearch_jax.pocket.pretraining.curriculum import Batch, Curriculum
from sensesearch_jax.pocket.pretraining.initial_policy import write_first
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.run import Trainer
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.recipes.session import POCKET_POLICY
from sensesearch_jax.training import prefix_shared_forward

SHIPPED = flags.DEFINE_bool('shipped', False, "the shipped policy's sizes, not those of the config")
LESSONS = flags.DEFINE_list(
    'lessons', ['short pages', 'pages', 'tools', 'pictures', 'attributes', 'looks'], 'to measure'
)
TIMES = 2  # of each measurement; the least counts
LEFT_OUT = {
    'attention': (prefix_shared_forward, 'attend', lambda q, k, v, valid, caches=(): q),
    'head': (
        policy_with_probes,
        'token_log_probs',
        lambda hidden, head, targets: (hidden.sum(-1) + 0 * head[0, 0], None),
    ),
    'tower': (
        policy_with_probes.PolicyWithProbes,
        '_features',
        lambda self, batch: jnp.zeros(
            (len(batch.groups.prompt), len(batch.images[0]), self.policy.sizes.language.width)
        ),
    ),
}


def seconds(work) -> float:
    """Processor seconds of all threads, the least of several times."""
    found = []
    for _ in range(TIMES):
        began = time.process_time()
        jax.block_until_ready(work())
        found.append(time.process_time() - began)
    return min(found)


def gradient_seconds(config, policy, batch: Batch) -> float:
    """Of one batch's gradient, compiled before."""
    trainer = Trainer(policy, config)
    parameters = trainer.state['parameters']

    def work():
        zeros = jax.block_until_ready(trainer._zeros(parameters))
        return trainer._gradients(parameters, batch, 1.0, zeros)

    work()
    return seconds(work)


def main(_):
    """Prints the table."""
    config, files = runpy.run_path('configs/base.py')['get_config'](), PocketFiles()
    config.policy = str(POCKET_POLICY) if SHIPPED.value else ''
    pages, world = Pages(files), InventedWorld(files, 'train', 0)
    with tempfile.TemporaryDirectory() as folder:
        policy = write_first(Path(folder), config, pages, world)
        curriculum = Curriculum(config, Path(folder), policy.sizes, files, pages, world)
    rng = np.random.default_rng(0)
    print('| lesson | making, s | gradient, s | attention | head | tower | padding | tokens |')
    print('|---|---|---|---|---|---|---|---|')
    for name in LESSONS.value:
        lesson = curriculum.lessons[name]
        for _ in range(2):
            batch = lesson(rng)
        making = seconds(lambda lesson=lesson: lesson(rng).groups.tokens)
        whole, shares = gradient_seconds(config, policy, batch), []
        for part, (module, attribute, nothing) in LEFT_OUT.items():
            if part == 'tower' and batch.images is None:
                shares.append('–')
                continue
            with mock.patch.object(module, attribute, nothing):
                shares.append(f'{1 - gradient_seconds(config, policy, batch) / whole:.0%}')
        used = int(batch.groups.valid.sum() + batch.groups.prompt_valid.sum())
        padding = 1 - used / batch.groups.padded_tokens
        print(
            f'| {name} | {making:.2f} | {whole:.2f} | {" | ".join(shares)} | {padding:.0%} | {used} |'
        )


if __name__ == '__main__':
    app.run(main)
