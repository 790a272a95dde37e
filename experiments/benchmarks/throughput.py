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
from pathlib import Path

# A training step of 7B needs nearly all of a card.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import numpy as np

from experiments.benchmarks.throughput_sides import MEMBERS, TURN, TURNS, Bench, Ours, Transformers
from experiments.benchmarks.work import apart, clock, markdown, rates
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.machine import machine

SIDES = {'ours': Ours, 'transformers': Transformers}


def measured(options: argparse.Namespace, side: str) -> list[list[float]]:
    """Seconds of one side's rollouts and training steps, in a process of its own."""
    it, advantages = SIDES[side](Bench(options.size)), np.linspace(-1, 1, MEMBERS)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--repeats', type=int, default=3, help='of everything; the table has medians')
    add('--out', default='throughput.md', help='where the table goes')
    add('--size', choices=RELEASED, help='a released policy in the place of a small one')
    options = parser.parse_args()
    # Before jax takes the card for this process.
    found = [apart(measured, options, side) for side in SIDES]
    flops, read = rates(8192, 1 << 30) if options.size else rates(2048, 1 << 27)
    rows = []
    for work, *seconds in zip(('rollout', 'training step'), *found):
        ours, theirs = map(statistics.median, seconds)
        rows.append([work, 'transformers', f'{ours:.2f}', f'{theirs:.2f}', f'{theirs / ours:.1f}'])
    lines = [
        f'{datetime.date.today().isoformat()}, {machine()}; {Bench(options.size)}; {MEMBERS} trajectories of '
        f'{TURNS} turns of {TURN} sampled tokens. Medians of {options.repeats} repetitions.',
        '',
        *markdown(('', 'beside', 'ours, s', 'theirs, s', 'times as fast'), rows),
        '',
        f'The machine in the same run: matrix products {flops / 1e9:.0f} GFLOP/s, memory {read / 1e9:.0f} GB/s.',
    ]
    print(*lines, sep='\n')
    Path(options.out).write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    keep_memory('experiments.benchmarks.throughput')  # as runs of sensesearch_jax.main do
    main()
