"""The 7B geometry with random weights on one accelerator: training, sampling and the tower, beside
the card's limits.

    python -m experiments.benchmarks.accelerator [--part=limits --part=train …] [--layers=0] [--out=docs/accelerator.md]

`limits` measures a matrix product and a copy. `train` makes SFT steps on a row of 8,192 tokens, its
features in place, with float32 master weights and moments, under two remat policies, and one step
of RL on a group of 8 behind a 4K picture. `tower` encodes a 4K picture; `sample` prefills
prompts of 10,580 tokens, appends responses, and decodes on 64 lanes in 8 groups. Every part is a
process of its own; one that fails is reported as such. Each adds lines to --results, of which --out
is made. Machine: one GPU with 140 GB for all 28 layers (training holds 12 bytes of master weights
and moments per parameter), 6 minutes; a smaller one takes --layers.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

# Training needs nearly all of the card; what is not asked for is not taken from another process.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.work import (
    GIB,
    Lengths,
    Pictures,
    apart,
    clock,
    group_flops,
    markdown,
    optimizer,
    random_policy,
    rates,
    with_layers,
)
from sensesearch_jax.batching.group_batch import ImageTable, Member, Row, build_groups
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.machine import machine
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.flops import PEAK_FLOPS, decoder_matrices, tower_flops
from sensesearch_jax.training.trainer import Learner

MEMORY = {'NVIDIA H100': 3.35e12, 'NVIDIA H200': 4.8e12}  # published bytes per second
PICTURE = (3840, 2160)  # pixels: 10,549 visual tokens
TEXT = 31  # tokens of the prompt beside the picture
GROUPS, MEMBERS, CHUNK = 8, 8, 64
COLUMNS = (
    'card', 'what', 'date', 'seconds', 'tokens', 'rate', 'of the published', 'of that in `limits`',
    'most memory',
)  # fmt: skip
HEAD = """# The 7B geometry on one accelerator

Made by `python -m experiments.benchmarks.accelerator` (Machine: one NVIDIA H200); random weights in bfloat16, float32 master weights and moments in training. FLOPs are those of the mathematics, counted by hand, recomputation and padding aside, so that a share of the published rate is the model FLOPs utilisation. Bytes of decoding are weights, prefixes (once per group) and suffixes, each once a step; tokens are those of a step. `dots` keeps what came out of matrices and attention.
"""  # noqa: E501


class Bench:
    """The policy's sizes, the lengths, and where measurements are noted, as the command line says."""

    def __init__(self, options: argparse.Namespace, part: str):
        self.options, self.part, self.repeats = options, part, options.repeats
        self.sizes = with_layers(RELEASED[options.size], options.layers)

    def length(self, count: int, least: int = 8) -> int:
        """A count of tokens, pixels or numbers, times --scale."""
        return max(least, int(count * self.options.scale))

    def seconds(self, work: Callable[[], Any]) -> float:
        """The median of --repeats runs after one that compiles."""
        return statistics.median([clock(work)[0] for _ in range(self.repeats + 1)][1:])

    def note(self, what: str, **values: Any) -> None:
        """A measurement, for the table and for whoever watches."""
        line = {'part': self.part, 'what': what, 'date': datetime.date.today().isoformat()}
        line |= {'machine': machine(), 'card': jax.devices()[0].device_kind}
        line |= {'layers': self.options.layers, 'xla_flags': os.environ.get('XLA_FLAGS', '')}
        peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
        line |= {'peak': float(peak) if self.part != 'limits' else 0.0} | values
        print(json.dumps(line), flush=True)
        with open(self.options.results, 'a') as file:
            file.write(json.dumps(line) + '\n')

    def row(self, prompt: int, members: int, suffix: int, name: str) -> tuple[Row, ImageTable]:
        """A row whose prompt is a picture between two texts, and random features of the picture."""
        sizes, visual = self.sizes, 2 * ((prompt - TEXT) // 2)
        features = np.random.default_rng(1).normal(size=(visual, sizes.vision.feature_width))
        tokens = [*text(TEXT - 3), sizes.vision_start_token, *[sizes.image_token] * visual]
        tokens += [sizes.vision_end_token]
        tokens += text(prompt + 1 - len(tokens), 2)
        n = suffix - 1
        own = [Member(text(n, 3 + g), [True] * n, (), [-12.0] * n) for g in range(members)]
        table = ImageTable({name: (1, 4, visual)}, {name: features.astype(np.float32)})
        return Row(tokens, [name], own), table


def text(count: int, seed: int = 0) -> list[int]:
    """Random tokens that stand for themselves."""
    return np.random.default_rng(seed).integers(0, 100_000, count).tolist()


def limits(bench: Bench) -> None:
    """A large bfloat16 product, and a copy, counted in bytes read and written."""
    flops, moved = rates(bench.length(8192, 256), bench.length(1 << 30, 1 << 20))
    bench.note('matrix product', flops=flops)
    bench.note('copy', bytes=moved)


def train(bench: Bench) -> None:
    """SFT steps under two remat policies, and RL steps on a group."""

    def long(n):
        return max(64, bench.length(n) // 64 * 64)

    for remat in ('dots', 'attention'):
        train_on(bench, 'SFT', Lengths(long(6144), 0, long(2048)), 1, remat)
        gc.collect()
    train_on(bench, 'RL', Lengths(long(10_560), 0, long(512)), MEMBERS, 'attention')


def train_on(bench: Bench, stage: str, lengths: Lengths, members: int, remat: str) -> None:
    """Whole steps on one row, from random weights; says so where there is no room for them."""
    sizes, (prompt, _, suffix) = bench.sizes, lengths
    objective = Objective(ratio='sequence', clip_low=0.2, clip_high=0.28)
    learner = Learner(
        random_policy(sizes), optimizer(), remat=remat, dtype=jnp.bfloat16, objective=objective
    )
    row, table = bench.row(prompt, members, suffix, 'picture')
    how = {'image_token': sizes.image_token, 'merge': 2, 'members': members, 'feature_step': 64}
    batch = build_groups([row], table, width=sizes.vision.feature_width, **how)
    advantages = np.linspace(-1, 1, members, dtype=np.float32)[None]
    targets = PolicyTargets(advantages, np.ones((1, members), bool), None)

    def step():
        return learner.sft_step([batch]) if stage == 'SFT' else learner.rl_step([(batch, targets)])

    what = f'{stage}, {prompt} + {members} × {suffix}, remat {remat}'
    try:
        compiled, first = clock(step)
        took = bench.seconds(step)
    except jax.errors.JaxRuntimeError as error:  # most of all, no room
        bench.note(what, failed=str(error).splitlines()[0][:200])
        return
    found = {'seconds': took, 'flops': 3 * group_flops(sizes, members, lengths)}
    found |= {'tokens': prompt + members * suffix, 'first': compiled, 'loss': first['loss']}
    bench.note(what, **found)


def tower(bench: Bench) -> None:
    """A 4K picture through the vision tower, one at a time: patches to the device, features back."""
    sizes, made = bench.sizes, Pictures()
    size = [bench.length(side, 56) for side in PICTURE]
    cut = Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16_384)
    store = FeatureStore(random_policy(sizes), cut, made, capacity_bytes=1 << 30, batch=1)
    pictures = [made.draw(size) for _ in range(bench.repeats + 1)]
    for picture in pictures:
        store.prepare(picture)
    took = [clock(lambda p: len(store.table([p]).features[p.sha256]), p) for p in pictures]
    visual = took[0][1]
    found = {'seconds': statistics.median(s for s, _ in took[1:]), 'first': took[0][0]}
    found |= {'tokens': visual, 'flops': tower_flops(sizes.vision, 4 * visual)}
    bench.note(f'{size[0]} × {size[1]} pixels', **found)


def sample(bench: Bench) -> None:
    """Prefill of prompts behind a 4K picture, a response to every lane, and decoding."""
    sizes, prompt, response = bench.sizes, bench.length(10_580, 64), bench.length(448)
    rows = [bench.row(prompt - 1, 0, 0, f'picture {i}') for i in range(GROUPS)]
    prompts, names = [r.prompt for r, _ in rows], [r.images for r, _ in rows]
    grids, features = ({k: v for _, t in rows for k, v in t[i].items()} for i in range(2))
    table = ImageTable(grids, features)
    engine = Engine(
        random_policy(sizes),
        groups=GROUPS,
        members=MEMBERS,
        prompt_capacity=-(-prompt // 128) * 128,
        # Decoding stays within one size of caches.
        suffix_capacity=-(-response // 64) * 64 + 4 * CHUNK,
        chunk=CHUNK,
        stop=(),
        suppressed=(sizes.image_token,),
        prefill_rows=1,
        extend_lanes=16,
    )

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        took, (out, _) = clock(lambda: (work(), engine.caches))
        return took, out

    first, places = timed(lambda: engine.prefill([0], prompts[:1], names[:1], table))
    took, more = timed(lambda: engine.prefill(range(1, GROUPS), prompts[1:], names[1:], table))
    places += more
    found = {'seconds': took / (GROUPS - 1), 'tokens': prompt, 'first': first}
    bench.note('prefill', **found, flops=group_flops(sizes, 0, Lengths(prompt - 1, 0, 0)))

    lanes = [(b, g) for b in range(GROUPS) for g in range(MEMBERS)]
    responses = [text(response - 1, i) for i in range(len(lanes))]

    def extend(first):
        at = slice(first, first + MEMBERS)
        before = [places[b] for b, _ in lanes[at]]
        return engine.extend(lanes[at], [7] * MEMBERS, responses[at], [[]] * MEMBERS, before, table)

    first, _ = timed(lambda: extend(0))
    later = range(MEMBERS, len(lanes), MEMBERS)
    took, _ = timed(lambda: [extend(i) for i in later])
    found = {'seconds': took / (len(lanes) - MEMBERS), 'first': first, 'tokens': response}
    bench.note(f'a response of {response} tokens', **found)

    text_sizes, lanes_on = sizes.language, np.ones((GROUPS, MEMBERS), bool)
    weights = 2 * (decoder_matrices(text_sizes) + text_sizes.vocabulary * text_sizes.width)
    each = 4 * text_sizes.layers * text_sizes.kv_heads * text_sizes.head_width  # bytes of a token
    seeds = np.arange(lanes_on.size, dtype=np.uint32).reshape(lanes_on.shape)
    budget = np.full(lanes_on.shape, CHUNK)
    first, _ = timed(lambda: engine.decode(lanes_on, budget, seeds))
    for _ in range(3):
        took, chunk = timed(lambda: engine.decode(lanes_on, budget, seeds))
        assert (chunk.count == CHUNK).all() and np.isfinite(chunk.log_probs).all()
        behind = engine.length.mean() - CHUNK / 2
        read = weights + each * (GROUPS * (prompt - 1) + lanes_on.size * behind)
        found = {'seconds': took / CHUNK, 'first': first, 'tokens': lanes_on.size}
        what = f'decode, {lanes_on.size} lanes, {behind:.0f} tokens behind the prompt'
        bench.note(what, **found, bytes=float(read))


def rate(found: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """A measurement's rate, and its share of the published one and of what the card gave in the
    `limits` before it.
    """
    kind = next((kind for kind in ('flops', 'bytes') if kind in found), None)
    if kind is None:
        return ['', '', '']
    known, what = (PEAK_FLOPS, 'matrix product') if kind == 'flops' else (MEMORY, 'copy')
    published = next((v for name, v in known.items() if found['card'].startswith(name)), None)
    seen = [None] + [
        r[kind]
        for r in results[: results.index(found) + 1]
        if (r['part'], r['what'], r['card']) == ('limits', what, found['card'])
    ]
    rate = found[kind] / found.get('seconds', 1.0) / 1e12
    shares = [f'{100e12 * rate / x:.0f} %' if x else 'unknown' for x in (published, seen[-1])]
    return [f'{rate:.0f} TFLOP/s' if kind == 'flops' else f'{rate:.2f} TB/s', *shares]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the newest measurement of each kind on each card under each set of flags."""
    newest = {(r['card'], r['part'], r['what'], r['layers'], r['xla_flags']): r for r in results}
    rows = []
    for found in newest.values():
        what = f'{found["part"]}: {found["what"]}'
        what += f', {found["layers"]} layers' if found['layers'] else ''
        what += f', `XLA_FLAGS={found["xla_flags"]}`' if found['xla_flags'] else ''
        what += f' ({found["remark"]})' if 'remark' in found else ''
        cells = [found['machine'], what, found['date']]
        if 'failed' in found:
            rows.append([*cells, f'failed: {found["failed"]}', *[''] * 5])
            continue
        took = f'{found["seconds"]:.4f}' if 'seconds' in found else ''
        peak = f'{found["peak"] / GIB:.0f} GiB' if found.get('peak') else ''
        rows.append([*cells, took, found.get('tokens', ''), *rate(found, results), peak])
    return '\n'.join([HEAD, *markdown(COLUMNS, rows)]) + '\n'


def measure(options: argparse.Namespace, part: str) -> None:
    """One part, in a process of its own."""
    PARTS[part](Bench(options, part))


PARTS = {'limits': limits, 'train': train, 'tower': tower, 'sample': sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--part', action='append', choices=PARTS, help='what to measure; everything by default')
    add('--size', default='7B', choices=RELEASED, help='of the released policies')
    add('--layers', type=int, default=0, help='fewer decoder layers; 0 keeps all')
    add('--scale', type=float, default=1.0, help='of all lengths; for a quick look only')
    add('--repeats', type=int, default=5, help='whose median is taken, after one that compiles')
    add('--results', default='docs/accelerator.jsonl', help='each measurement adds a line to it')
    add('--out', default='docs/accelerator.md', help='where the table goes')
    options = parser.parse_args()
    for part in options.part or PARTS:
        try:
            apart(measure, options, part)
        except (BrokenProcessPool, jax.errors.JaxRuntimeError) as error:
            print(f'{part} failed: {error}', file=sys.stderr)
    results = [json.loads(line) for line in Path(options.results).read_text().splitlines()]
    Path(options.out).write_text(table(results))
    print(table(results))


if __name__ == '__main__':
    main()
