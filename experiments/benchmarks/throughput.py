"""Rollouts and a training step beside transformers: same machine, geometry, prompts and sampled
lengths.

    python -m experiments.benchmarks.throughput [--repeats=3] [--out=throughput.md]
    python -m experiments.benchmarks.throughput --size=7B --out=throughput_7b.md

One group of 8 trajectories of three turns, with a picture in the prompt and one in every tool
response. Ours prefills the prompt once and keeps every trajectory's cache between turns; the peer's
`generate` is given the whole conversation at each turn, as its users do. The training step is on
those trajectories: ours as one group row, the peer's as 8 separate sequences, in micro-batches of a
few. Both sample exactly TURN tokens a turn from random weights of their own
(experiments/analysis/numerics.py compares what they compute). Each side is measured in a process
that has the machine to itself, all rollouts before all training steps, after one of each of ours
that compiles; the table has medians, their ratio, and the machine's own limits. Needs the extra
`test` (PyTorch, transformers). Machine: 2 cores and 24 GB take 25 minutes or more.

With --size the policy is a released one in bfloat16 on one accelerator, behind a 4K picture of
10,549 tokens. Ours trains float32 master weights and moments; the peer has all of its state in
bfloat16, and gradient checkpointing. Machine: one GPU with 140 GB.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

# A training step of 7B needs nearly all of a card.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.throughput_sides import (
    MEMBERS,
    TURN,
    TURNS,
    Bench,
    Ours,
    Setting,
    Transformers,
)
from experiments.benchmarks.work import apart, clock, markdown
from sensesearch_jax.model.config import RELEASED, LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.machine import machine

SIDES = {'ours': Ours, 'transformers': Transformers}


def setting_of(options: argparse.Namespace) -> Setting:
    """The policy and lengths of the command line; by default a hundred million parameters and 2,170
    visual tokens, widths and lengths times --scale.
    """
    if options.size:
        return Setting(RELEASED[options.size], (3840, 2160), 21, 64, 1, True)
    heads = max(2, 2 * round(6 * options.scale))
    vision = VisionSizes(
        depth=6,
        width=32 * heads,
        mlp_width=64 * heads,
        heads=heads // 2,
        out_width=64 * heads,
        full_attention_blocks=(2, 5),
    )
    language = LanguageSizes(
        layers=12,
        width=64 * heads,
        mlp_width=round(2.75 * 64 * heads),
        heads=heads,
        kv_heads=heads // 2,
        vocabulary=8192,
        mrope_sections=(8, 12, 12),
        tied_head=True,
    )
    scale = min(options.scale, 1.0)
    picture = tuple(28 * max(2, round(side * scale / 28)) for side in (1736, 980))
    sizes = PolicySizes(vision, language, 8100, 8101, 8102, 8103, end_tokens=(8104,))
    return Setting(sizes, picture, round(300 * options.scale), 96, 2, False)


def measured(options: argparse.Namespace, side: str) -> list[list[float]]:
    """Seconds of one side's rollouts and training steps, in a process of its own."""
    it, advantages = SIDES[side](Bench(setting_of(options))), np.linspace(-1, 1, MEMBERS)
    it.warm_up()
    seconds: list[list[float]] = [[], []]
    for i in range(options.repeats):
        it.prepare()
        took, sampled = clock(it.rollout, i)
        seconds[0].append(took)
        print(f'{side}: rollout {took:.2f} s', file=sys.stderr, flush=True)
    if side == 'ours':
        it.train(sampled, advantages)  # compiles
    for _ in range(options.repeats):
        seconds[1].append(clock(it.train, sampled, advantages)[0])
        print(f'{side}: training step {seconds[1][-1]:.2f} s', file=sys.stderr, flush=True)
    return seconds


def limits(large: bool) -> str:
    """The machine's matrix products and reading of memory by XLA, on an accelerator if `large`."""
    n, m = (8192, 1 << 30) if large else (2048, 1 << 27)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16 if large else jnp.float32)
    b = jnp.ones(m)

    def best(f: Callable, *given: jax.Array) -> float:
        return min(clock(f, *given)[0] for _ in range(6))

    products, read = 2 * n**3 / best(jax.jit(jnp.matmul), a, a), 4 * m / best(jax.jit(jnp.sum), b)
    return f'matrix products {products / 1e9:.0f} GFLOP/s, memory {read / 1e9:.0f} GB/s'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--repeats', type=int, default=3, help='of everything; the table has medians')
    add('--out', default='throughput.md', help='where the table goes')
    add('--scale', type=float, default=1.0, help="of the small policy's widths and lengths")
    add('--size', choices=RELEASED, help='a released policy in the place of a small one')
    options = parser.parse_args()
    # Before jax takes the card for this process.
    found = [apart(measured, options, side) for side in SIDES]
    rows = []
    for work, *seconds in zip(('rollout', 'training step'), *found):
        ours, theirs = map(statistics.median, seconds)
        rows.append([work, 'transformers', f'{ours:.2f}', f'{theirs:.2f}', f'{theirs / ours:.1f}'])
    lines = [
        f'{datetime.date.today().isoformat()}, {machine()}; {Bench(setting_of(options))}; {MEMBERS} trajectories of '
        f'{TURNS} turns of {TURN} sampled tokens. Medians of {options.repeats} repetitions.',
        '',
        *markdown(('', 'beside', 'ours, s', 'theirs, s', 'times as fast'), rows),
        '',
        f'The machine in the same run: {limits(bool(options.size))}.',
    ]
    print(*lines, sep='\n')
    Path(options.out).write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    keep_memory('experiments.benchmarks.throughput')  # as runs of sensesearch_jax.main do
    main()
