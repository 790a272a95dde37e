"""The time for which a checkpoint stops training: written while training waits, and while it goes on.

    python -m experiments.benchmarks.checkpoint_pause --parameters=600000000

The state is random bfloat16 arrays, as many numbers as the policy has parameters; float32 and moments would be six
times the bytes. A step reads and replaces all of them, as an update does. A checkpoint is saved before a step; the
pause is the time of `save` (and of `wait`, where training waits), and whatever the steps behind it, until it is on
disk, take longer than others. On a CPU the writer competes with the steps; on an accelerator it does not. Prints a
table; exits with 1 if the pause is more than BAR of that of the synchronous save. 2 cores, 4 GB, 4 GB of disk: 2
minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from experiments.benchmarks.work import markdown
from sensesearch_jax.training.checkpointing import Checkpoints, Kept

PARAMETERS = flags.DEFINE_integer('parameters', 600_000_000, 'Numbers of the state.')
FOLDER = flags.DEFINE_string('folder', None, 'Where checkpoints are written; a temporary folder.')

LAYER, SAVES, BAR = 12_000_000, 3, 0.1


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    update = jax.jit(lambda x: x * 0.999 + 1e-3, donate_argnums=0)

    def step(state):
        began = time.monotonic()
        state = jax.block_until_ready({name: update(x) for name, x in state.items()})
        return state, time.monotonic() - began

    state = {
        f'layer_{i}': jax.random.normal(jax.random.key(i), LAYER, jnp.bfloat16)
        for i in range(-(-PARAMETERS.value // LAYER))
    }
    usual = []
    for _ in range(5):
        state, seconds = step(state)
        usual.append(seconds)
    usual_s = float(np.median(usual[1:]))
    found = {}
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        for name, waits in (('synchronous', True), ('asynchronous', False)):
            pauses, behind, written = [], [], []
            with Checkpoints(f'{folder}/{name}', Kept(last=1, every=0, best=0)) as checkpoints:
                for number in range(SAVES):
                    began = time.monotonic()
                    checkpoints.save(number, state)
                    if waits:
                        checkpoints.wait()
                    pauses.append(time.monotonic() - began)
                    slower = 0.0
                    while not waits and checkpoints.saving:
                        state, seconds = step(state)
                        slower += max(0.0, seconds - usual_s)
                    behind.append(slower)
                    checkpoints.wait()
                    written.append(time.monotonic() - began)
            found[name] = [float(np.median(x)) for x in (pauses, behind, written)]
    rows = [[name, *(f'{x:.2f}' for x in values)] for name, values in found.items()]
    size = sum(x.size for x in state.values()) / 1e6
    print(f'{size:.0f} million bfloat16, a step of {usual_s:.2f} s, medians of {SAVES} saves')
    columns = 'save', 'pause s', 'steps behind it longer by s', 'on disk after s'
    print('\n'.join(markdown(columns, rows)))
    share = found['asynchronous'][0] / found['synchronous'][0]
    print(
        f'The asynchronous save stops training for {share:.1%} of the time of the synchronous one.'
    )
    sys.exit(share > BAR)


if __name__ == '__main__':
    app.run(main)
