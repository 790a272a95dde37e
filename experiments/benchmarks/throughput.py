"""Rollouts and a training step beside what people use today: same machine, weights, prompts and
sampled lengths.

    python -m experiments.benchmarks.throughput [--repeats=3] [--out=throughput.md]
    python -m experiments.benchmarks.throughput --size=7B --out=throughput_7b.md

One group of 8 trajectories of three turns, with a picture in the prompt and one in every tool
response. Ours prefills the prompt once and keeps every trajectory's cache between turns; the peer's
`generate` is given the whole conversation at each turn, as its users do. The training step is on
those trajectories: ours as one group row, the peer's as 8 separate sequences, in micro-batches of a
few. Both sample exactly TURN tokens a turn. Then a whole step of trl's GRPO trainer on one such
turn beside ours, and the decoding of tunix's sampler, on text alone, beside ours. Repetitions
alternate between the two; the table has medians and their ratios, and the machine's own limits as
measured in the same run. Each peer is measured in a process of its own, which has the memory to
itself. Needs the extra
`test` (PyTorch, transformers); trl and tunix get environments of their own under --environments, and one that
cannot be installed is reported as such. Machine: 2 cores and 24 GB take 25 minutes or more.

With --size the policy is a released one with random weights in bfloat16 on one accelerator, behind
a 4K picture of 10,549 tokens. The two do not fit on a card together, so that each is a process of
its own with weights of its own, one after the other, and their log-probs are not compared
(experiments/analysis/numerics.py does that). Ours trains float32 master weights and moments; the peer has
all of its state in bfloat16, and gradient checkpointing. Machine: one GPU with 140 GB.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# A training step of 7B needs nearly all of a card.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.benchmarks.peers.process import Missing, Peer
from experiments.benchmarks.throughput_sides import Ours, Transformers
from experiments.benchmarks.throughput_work import (
    MEMBERS,
    TURN,
    TURNS,
    Bench,
    Conversation,
    Setting,
    small,
)
from sensesearch_jax.batching.group_batch import ImageTable
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.machine import machine

WORK = 'rollout', 'training step'
PEERS = 'transformers', 'trl', 'tunix'
TEXT_PROMPT, TEXT_TOKENS = 1024, 128  # that tunix decodes: a group's prompt, and what is sampled

options = argparse.Namespace()  # of the command line


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--repeats', type=int, default=3, help='of everything; the table has medians')
    add('--out', default='throughput.md', help='where the table goes')
    add('--scale', type=float, default=1.0, help="of the small policy's widths and lengths")
    add('--size', choices=RELEASED, help='a released policy in the place of a small one')
    add('--peer', action='append', choices=PEERS, help='for the small policy; all by default')
    add('--environments', default='runs/peers', help='where trl and tunix are installed')
    return parser.parse_args()


def limits(large: bool) -> dict[str, float]:
    """The machine's: FLOP/s of a matrix product and bytes/s of reading memory by XLA, on an
    accelerator if `large`.
    """

    def best(f: Callable, *args) -> float:
        jax.block_until_ready(f(*args))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - start)
        return min(times)

    n, m = (8192, 1 << 30) if large else (2048, 1 << 27)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16 if large else jnp.float32)
    b = jnp.ones(m)
    return {
        'matrix products, GFLOP/s': 2 * n**3 / best(jax.jit(jnp.matmul), a, a) / 1e9,
        'memory, GB/s': 4 * m / best(jax.jit(jnp.sum), b) / 1e9,
    }


def clock(work: Callable, *args) -> tuple[float, object]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    out = work(*args)
    return time.perf_counter() - start, out


def measure(bench: Bench, repeats: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Seconds by work and side, the two in turn; and the gap between the peer's log-probs and our
    sampler's.
    """
    ours, theirs = Ours(bench), Transformers(bench)
    seconds: dict[str, dict[str, list[float]]] = {w: {'ours': [], 'transformers': []} for w in WORK}
    advantages, gap = np.linspace(-1, 1, MEMBERS), 0.0
    for i in range(repeats + 1):
        ours.prepare()
        took, sampled = clock(ours.rollout, i)
        peer, _ = clock(theirs.rollout, i) if i else (0.0, None)
        step, _ = clock(ours.train, sampled, advantages)
        peer_step, found = clock(theirs.train, sampled, advantages)
        if i == 0:  # ours compiles, the peer has nothing to; and until now the two policies are one
            gap, compiled = found, ours.compiles
            continue
        for work, mine, other in zip(WORK, (took, step), (peer, peer_step)):
            seconds[work]['ours'].append(mine)
            seconds[work]['transformers'].append(other)
        print(
            f'{i}: rollout {took:.1f} s and {peer:.1f} s, training step {step:.1f} s and {peer_step:.1f} s',
            file=sys.stderr,
            flush=True,
        )
    if ours.compiles > compiled:
        raise RuntimeError(
            f'{ours.compiles - compiled} programs were compiled after the first repetition.'
        )
    return seconds, gap


def beside_trl(bench: Bench, repeats: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of a whole step on a group's single turn: sampling, rewards, update."""
    bench.make_policy()
    picture = bench.conversation.picture
    (bench.folder / 'picture.png').write_bytes(bench.pictures.image(picture.sha256))
    peer = Peer(
        'trl',
        'trl_step.py',
        folder,
        bench.folder,
        bench.folder / 'picture.png',
        TURN,
        json.dumps(bench.suppressed),
    )
    # Its own prompt, token by token.
    ours = Ours(bench.about(Conversation(json.loads(peer.hello), picture, [[]] * MEMBERS)))
    seconds: dict[str, list[float]] = {'ours': [], 'trl': []}
    for i in range(repeats + 1):
        ours.prepare()
        took, _ = clock(lambda seed: ours.train(ours.rollout(seed), np.linspace(-1, 1, MEMBERS)), i)
        for side, spent in (('ours', took), ('trl', peer.seconds())):
            seconds[side] += [spent] if i else []  # the first compiles
    peer.close()
    return {f'a step on one turn behind {len(ours.bench.conversation.prompt)} tokens': seconds}


def beside_tunix(bench: Bench, repeats: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of decoding behind a prompt of text, alone and as a group."""
    policy, text = bench.make_policy(), bench.folder / 'text'
    text.mkdir()
    tensors = load_file(bench.folder / 'model.safetensors')
    save_file(
        {name: x for name, x in tensors.items() if not name.startswith('visual.')},
        text / 'model.safetensors',
    )
    (text / 'config.json').write_text((bench.folder / 'config.json').read_text())
    prompt = np.random.default_rng(0).integers(0, 2000, TEXT_PROMPT).tolist()
    found = {}
    for members in (1, MEMBERS):
        engine = Engine(
            policy,
            groups=1,
            members=members,
            prompt_capacity=TEXT_PROMPT,
            suffix_capacity=TEXT_TOKENS,
            chunk=TEXT_TOKENS,
            stop=(),
            suppressed=bench.suppressed,
            prefill_rows=1,
            extend_lanes=members,
            sampling=Sampling(0.0),
        )  # greedy, as the peer is
        peer = Peer('tunix', 'tunix_sampler.py', folder, text, members, TEXT_PROMPT, TEXT_TOKENS)
        on, seeds = np.ones((1, members), bool), np.arange(members, dtype=np.uint32)[None]
        seconds: dict[str, list[float]] = {'ours': [], 'tunix': []}
        for i in range(repeats + 1):
            engine.prefill([0], [prompt], [[]], ImageTable({}, {}))
            jax.block_until_ready(engine.caches)  # the peer's seconds are of decoding alone
            took, _ = clock(engine.decode, on, np.full((1, members), TEXT_TOKENS), seeds)
            for side, spent in (('ours', took), ('tunix', peer.seconds())):
                seconds[side] += [spent] if i else []
        peer.close()
        found[f'decoding {members} × {TEXT_TOKENS} tokens behind {TEXT_PROMPT} of text'] = seconds
    return found


def alone(bench: Bench, side: str, repeats: int) -> dict[str, list[float]]:
    """Seconds by work of one side, all rollouts before all training steps."""
    it = Ours(bench) if side == 'ours' else Transformers(bench)
    it.warm_up()
    rollouts = []
    for i in range(repeats):
        it.prepare()
        rollouts.append(clock(it.rollout, i))
        print(f'{side}: rollout {rollouts[-1][0]:.2f} s', file=sys.stderr, flush=True)
    sampled = rollouts[-1][1]
    if side == 'transformers':
        sampled = sampled._replace(
            log_probs=[[[-12.0] * TURN] * TURNS] * MEMBERS
        )  # `generate` gives none
        it.model.gradient_checkpointing_enable()
        it.model.train()
        gc.collect()
        it.torch.cuda.empty_cache()
    advantages = np.linspace(-1, 1, MEMBERS)
    steps, compiling = [], int(side == 'ours')
    for _ in range(repeats + compiling):
        steps.append(clock(it.train, sampled, advantages)[0])
        print(f'{side}: training step {steps[-1]:.2f} s', file=sys.stderr, flush=True)
    return dict(zip(WORK, ([took for took, _ in rollouts], steps[compiling:])))


def measured_here(given: argparse.Namespace, name: str) -> dict:
    """A row or two of the table: seconds by work and side, and what is to be said beside them."""
    vars(options).update(vars(given))
    found: dict = {'seconds': {}, 'gap': None, 'missing': []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), the_setting())
        if bench.setting.released:
            found['seconds'] = {
                work: {name: took} for work, took in alone(bench, name, options.repeats).items()
            }
        elif name == 'transformers':
            found['seconds'], found['gap'] = measure(bench, options.repeats)
        else:
            environments = Path(options.environments).absolute()
            environments.mkdir(parents=True, exist_ok=True)
            try:
                beside = {'trl': beside_trl, 'tunix': beside_tunix}[name]
                found['seconds'] = beside(bench, options.repeats, environments)
            except Missing as error:
                found['missing'] = [f'{name} is not in the table: {error}.']
    return found


def one_after_the_other(given: argparse.Namespace, names: Sequence[str]) -> dict:
    """`measured_here` of each, in a process that has the machine's memory and its card to itself."""
    whole: dict = {'seconds': {}, 'gap': None, 'missing': []}
    spawn = multiprocessing.get_context('spawn')  # a forked jax does not live
    for name in names:
        with spawn.Pool(1) as process:
            found = process.apply(measured_here, (given, name))
        for work, sides in found['seconds'].items():
            whole['seconds'].setdefault(work, {}).update(sides)
        whole['gap'] = whole['gap'] or found['gap']
        whole['missing'] += found['missing']
    return whole


def the_setting() -> Setting:
    """As the flags say."""
    return (
        Setting(RELEASED[options.size], (3840, 2160), 21, 64, 1, True)
        if options.size
        else small(options.scale)
    )


def table(
    bench: Bench,
    seconds: dict,
    gap: float | None,
    missing: list[str],
    machine_limits: dict[str, float],
) -> str:
    """The result as Markdown."""
    repeats = len(next(iter(seconds.values()))['ours'])
    lines = [
        f'{datetime.date.today().isoformat()}, {machine()}; {bench.parameters / 1e6:.0f} million parameters, '
        f'{"bfloat16" if bench.setting.released else "float32"}; '
        + ', '.join(f'{count} tokens {what}' for what, count in bench.tokens().items())
        + f'; {MEMBERS} trajectories of {TURNS} turns of {TURN} sampled tokens. Medians of '
        f'{repeats} {"" if bench.setting.released else "alternating "}repetitions.',
        '',
        '| | beside | ours, s | theirs, s | times as fast |',
        '|---|---|---|---|---|',
    ]
    for work, sides in seconds.items():
        mine, (name, other) = (
            statistics.median(sides['ours']),
            next((n, v) for n, v in sides.items() if n != 'ours'),
        )
        lines.append(
            f'| {work} | {name} | {mine:.2f} | {statistics.median(other):.2f} '
            f'| {statistics.median(other) / mine:.1f} |'
        )
    lines += [
        '',
        *missing,
        *(
            []
            if gap is None
            else [
                'Largest difference between the log-probs of our sampler and those '
                f'of transformers: {gap:.1e}.'
            ]
        ),
        *([] if gap is None else ['Nothing was compiled after the first repetition.']),
        'The machine in the same run: '
        + ', '.join(f'{name} {value:.0f}' for name, value in machine_limits.items())
        + '.',
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    given = parsed()
    vars(options).update(vars(given))
    # Before jax takes the card for this process.
    sides = ('ours', 'transformers') if given.size else given.peer or PEERS
    found = one_after_the_other(given, sides)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), the_setting())
        text = table(bench, **found, machine_limits=limits(bench.setting.released))
    print(text)
    Path(given.out).write_text(text)


if __name__ == '__main__':
    keep_memory('experiments.benchmarks.throughput')  # as runs of sensesearch_jax.main do
    main()
