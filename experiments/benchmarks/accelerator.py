"""The 7B geometry with random weights on one accelerator: training, sampling and the tower, beside
the card's limits.

    python -m experiments.benchmarks.accelerator [--part=limits --part=train …] [--layers=0] [--out=docs/accelerator.md]

`limits` measures a matrix product and a copy. `train` makes SFT steps on a row of 8,192 tokens, its
features in place, with float32 master weights and moments, for each remat policy asked for, and one
step of RL on a group of 8 behind a 4K picture. `tower` encodes a 4K picture; `sample` prefills
prompts of 10,580 tokens, appends responses, and decodes on 64 lanes in 8 groups. Every part is a
process of its own, so that what one leaves in memory is not in the other's way; a part that fails
is reported as such. Each adds lines to --results, of which --out is made. Machine: one GPU with 140
GB for all 28 layers (training holds 12 bytes of master weights and moments per parameter), 6
minutes; a smaller one takes --layers.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import io
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Training needs nearly all of the card; what the process does not ask for is not taken from another
# one.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.96')

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.benchmarks.work import Lengths, group_flops, optimizer, random_policy, tower_flops
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import ImageTable, Member, Row, build_groups
from sensesearch_jax.model.config import RELEASED, PolicySizes
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.machine import machine
from sensesearch_jax.training.batch_losses import Objective, PolicyTargets
from sensesearch_jax.training.flops import PEAK_FLOPS, decoder_matrices
from sensesearch_jax.training.trainer import Learner

MEMORY = {'NVIDIA H100': 3.35e12, 'NVIDIA H200': 4.8e12}  # published bytes per second
PARTS = ('limits', 'train', 'tower', 'sample')
PICTURE = (3840, 2160)  # pixels: 10,549 visual tokens
TEXT = 31  # tokens of the prompt beside the picture
GROUPS, MEMBERS, CHUNK = 8, 8, 64
GIB = 2.0**30

options = argparse.Namespace()  # of the command line


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--part', action='append', choices=PARTS, help='what to measure; everything by default')
    add('--size', default='7B', choices=RELEASED, help='of the released policies')
    add('--layers', type=int, default=0, help='fewer decoder layers; 0 keeps all')
    add('--scale', type=float, default=1.0, help='of all lengths; for a quick look only')
    add('--remat', action='append', help='policies to train with, the last one RL too')
    add('--repeats', type=int, default=5, help='whose median is taken, after one that compiles')
    add('--results', default='docs/accelerator.jsonl', help='each measurement adds a line to it')
    add('--out', default='docs/accelerator.md', help='where the table goes')
    return parser.parse_args()


def released(size: str, layers: int) -> PolicySizes:
    """The sizes of a released policy, with fewer layers where asked for."""
    sizes = RELEASED[size]
    return dataclasses.replace(
        sizes, language=dataclasses.replace(sizes.language, layers=layers or sizes.language.layers)
    )


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median of so many runs after one that compiles."""
    took = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(work())
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def peak_memory() -> float:
    """The most bytes that this process has held on the device; 0 where the backend does not say."""
    return float((jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0))


def note(part: str, what: str, **values: Any) -> None:
    """A measurement, for the table and for whoever watches."""
    line = {
        'part': part,
        'what': what,
        'date': datetime.date.today().isoformat(),
        'machine': machine(),
        'card': jax.devices()[0].device_kind,
        'layers': options.layers,
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        **values,
    }
    print(json.dumps(line), flush=True)
    with open(options.results, 'a') as file:
        file.write(json.dumps(line) + '\n')


def limits() -> None:
    """A large bfloat16 product, and a copy, counted in bytes read and written."""
    n = max(256, int(8192 * options.scale))
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    b *= n**-0.5  # so that products of products stay as large as they are
    times = 10
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a))
    took = seconds(lambda: product(a, b), options.repeats) / times
    x = jnp.ones(max(1 << 20, int((1 << 30) * options.scale)), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    copied = seconds(lambda: add(x), options.repeats)
    note('limits', 'matrix product', flops=2 * n**3 / took)
    note('limits', 'copy', bytes=2 * x.nbytes / copied)


def text(count: int, seed: int = 0) -> list[int]:
    """Random tokens that stand for themselves."""
    return np.random.default_rng(seed).integers(0, 100_000, count).tolist()


def row(
    sizes: PolicySizes, prompt: int, members: int, suffix: int, name: str = 'picture'
) -> tuple[Row, ImageTable]:
    """A row whose prompt is a picture between two texts, and the random features of that picture."""
    visual = 2 * ((prompt - TEXT) // 2)
    features = (
        np.random.default_rng(1).normal(size=(visual, sizes.language.width)).astype(np.float32)
    )
    tokens = [*text(TEXT - 3), sizes.vision_start_token, *[sizes.image_token] * visual]
    tokens += [sizes.vision_end_token]
    tokens += text(prompt + 1 - len(tokens), 2)
    own = [
        Member(text(suffix - 1, 3 + g), [True] * (suffix - 1), (), [-12.0] * (suffix - 1))
        for g in range(members)
    ]
    return Row(tokens, [name], own), ImageTable({name: (1, 4, visual)}, {name: features})


def batch_of(sizes: PolicySizes, prompt: int, members: int, suffix: int):
    """That row as a batch."""
    one, table = row(sizes, prompt, members, suffix)
    return build_groups(
        [one],
        table,
        image_token=sizes.image_token,
        merge=2,
        members=members,
        width=sizes.language.width,
        feature_step=64,
    )


def train() -> None:
    """SFT steps under each remat policy, and RL steps on a group under the last."""

    def long(n):
        return max(64, int(n * options.scale) // 64 * 64)

    for remat in options.remat or ['dots', 'attention']:
        train_on('SFT', long(6144), 1, long(2048), remat)
        gc.collect()
    train_on('RL', long(10_560), MEMBERS, long(512), (options.remat or ['dots', 'attention'])[-1])


def train_on(stage: str, prompt: int, members: int, suffix: int, remat: str) -> None:
    """Whole steps on one row, from random weights; says so where there is no room for them."""
    sizes = released(options.size, options.layers)
    learner = Learner(
        random_policy(sizes),
        optimizer(),
        remat=remat,
        dtype=jnp.bfloat16,
        objective=Objective(ratio='sequence', clip_low=0.2, clip_high=0.28),
    )
    batch = batch_of(sizes, prompt, members, suffix)
    targets = PolicyTargets(
        np.linspace(-1, 1, members, dtype=np.float32)[None], np.ones((1, members), bool), None
    )

    def step():
        return learner.sft_step([batch]) if stage == 'SFT' else learner.rl_step([(batch, targets)])

    what = f'{stage}, {prompt} + {members} × {suffix}, remat {remat}'
    try:
        began = time.perf_counter()
        first = step()
        compiled = time.perf_counter() - began
        took = seconds(lambda: step() and None, options.repeats)
    except jax.errors.JaxRuntimeError as error:  # most of all, no room
        note('train', what, failed=str(error).splitlines()[0][:200])
        return
    flops = 3 * group_flops(sizes, members, Lengths(prompt, 0, suffix))
    found = {'seconds': took, 'flops': flops, 'tokens': prompt + members * suffix}
    note('train', what, **found, first=compiled, peak=peak_memory(), loss=first['loss'])


class OnePicture:
    """In the place of a tool server: a picture by any name."""

    def __init__(self, size: tuple[int, int]):
        pixels = np.random.default_rng(0).integers(
            0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8
        )
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(buffer, 'JPEG')
        self.file = buffer.getvalue()

    def image(self, _: str) -> bytes:
        """Its file."""
        return self.file


def tower() -> None:
    """A 4K picture through the vision tower, one at a time: patches to the device, features back."""
    sizes = released(options.size, options.layers)
    size = tuple(max(56, int(side * options.scale)) for side in PICTURE)
    store = FeatureStore(
        random_policy(sizes),
        Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16_384),
        OnePicture(size),
        capacity_bytes=1 << 30,
        batch=1,
    )
    pictures = [ImageRef(f'{i:064d}', *size) for i in range(options.repeats + 1)]
    for picture in pictures:
        store.prepare(picture)
    took = []
    for picture in pictures:
        began = time.perf_counter()
        visual = len(store.table([picture]).features[picture.sha256])
        took.append(time.perf_counter() - began)
    found = {'seconds': statistics.median(took[1:]), 'first': took[0], 'tokens': visual}
    what, flops = f'{size[0]} × {size[1]} pixels', tower_flops(sizes.vision, 4 * visual)
    note('tower', what, **found, flops=flops, peak=peak_memory())


def sample() -> None:
    """Prefill of prompts behind a 4K picture, a response to every lane, and decoding."""
    sizes = released(options.size, options.layers)
    prompt = max(64, int(10_580 * options.scale))
    rows = [row(sizes, prompt - 1, 0, 0, f'picture {i}') for i in range(GROUPS)]
    prompts, names = [r.prompt for r, _ in rows], [r.images for r, _ in rows]
    table = ImageTable(
        {k: v for _, t in rows for k, v in t.grids.items()},
        {k: v for _, t in rows for k, v in t.features.items()},
    )
    # From here on decoding stays within one size of caches.
    response = max(8, int(448 * options.scale))
    engine = Engine(
        random_policy(sizes),
        groups=GROUPS,
        members=MEMBERS,
        prompt_capacity=-(-prompt // 128) * 128,
        suffix_capacity=-(-response // 64) * 64 + 4 * CHUNK,
        chunk=CHUNK,
        stop=(),
        suppressed=(sizes.image_token,),
        prefill_rows=1,
        extend_lanes=16,
    )

    def clock(work: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        out = work()
        jax.block_until_ready(engine.caches)
        return time.perf_counter() - began, out

    first, places = clock(lambda: engine.prefill([0], prompts[:1], names[:1], table))
    took, more = clock(lambda: engine.prefill(range(1, GROUPS), prompts[1:], names[1:], table))
    places += more
    found = {'seconds': took / (GROUPS - 1), 'tokens': prompt, 'first': first}
    flops = group_flops(sizes, 0, Lengths(prompt - 1, 0, 0))
    note('sample', 'prefill', **found, flops=flops, peak=peak_memory())

    lanes = [(b, g) for b in range(GROUPS) for g in range(MEMBERS)]
    responses = [text(response - 1, i) for i in range(len(lanes))]

    def extend(at):
        before = [places[b] for b, _ in lanes[at]]
        return engine.extend(lanes[at], [7] * MEMBERS, responses[at], [[]] * MEMBERS, before, table)

    first, _ = clock(lambda: extend(slice(0, MEMBERS)))
    took, _ = clock(
        lambda: [extend(slice(i, i + MEMBERS)) for i in range(MEMBERS, len(lanes), MEMBERS)]
    )
    found = {'seconds': took / (len(lanes) - MEMBERS), 'first': first, 'tokens': response}
    note('sample', f'a response of {response} tokens', **found, peak=peak_memory())

    language = sizes.language
    weights = 2 * (decoder_matrices(language) + language.vocabulary * language.width)
    # Bytes of a token's keys and values.
    each = 2 * 2 * language.layers * language.kv_heads * language.head_width
    everyone = np.ones((GROUPS, MEMBERS), bool)
    seeds = np.arange(everyone.size, dtype=np.uint32).reshape(everyone.shape)
    budget = np.full(everyone.shape, CHUNK)
    first, _ = clock(lambda: engine.decode(everyone, budget, seeds))
    for _ in range(3):
        took, chunk = clock(lambda: engine.decode(everyone, budget, seeds))
        middle = engine.length.sum() - everyone.size * CHUNK / 2
        assert (chunk.count == CHUNK).all() and np.isfinite(chunk.log_probs).all()
        note(
            'sample',
            f'decode, {everyone.size} lanes, {engine.length.mean() - CHUNK / 2:.0f} tokens behind the prompt',
            seconds=took / CHUNK,
            first=first,
            bytes=float(weights + each * (GROUPS * (prompt - 1) + middle)),
            tokens=everyone.size,
            peak=peak_memory(),
        )


def rate(found: dict[str, Any], kind: str, results: list[dict[str, Any]]) -> str:
    """A measurement's share of the published rate, and of what the card gave in the `limits` before
    it.
    """
    rates, what = (PEAK_FLOPS, 'matrix product') if kind == 'flops' else (MEMORY, 'copy')
    published = next((v for name, v in rates.items() if found['card'].startswith(name)), None)
    before = results[: results.index(found) + 1]
    seen = [
        r[kind]
        for r in before
        if r['part'] == 'limits' and r['what'] == what and r['card'] == found['card']
    ]
    per_second = found[kind] / found.get('seconds', 1.0)

    def share(limit):
        return f'{100 * per_second / limit:.0f} %' if limit else 'unknown'

    shown = (
        f'{per_second / 1e12:.0f} TFLOP/s' if kind == 'flops' else f'{per_second / 1e12:.2f} TB/s'
    )
    return f'{shown} | {share(published)} | {share(seen[-1] if seen else None)}'


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the newest measurement of each kind on each card under each set of flags."""
    newest = {(r['card'], r['part'], r['what'], r['layers'], r['xla_flags']): r for r in results}
    lines = [
        '# The 7B geometry on one accelerator\n',
        'Made by `python -m experiments.benchmarks.accelerator`; random weights in '
        'bfloat16, float32 master weights and moments in training. FLOPs are those of the mathematics, counted by '
        'hand, recomputation and padding aside, so that a share of the published rate is the model FLOPs '
        'utilisation. Bytes of decoding are weights, prefixes (once per group) and suffixes, each once a step; '
        'tokens are those of a step. `dots` keeps what came out of matrices and attention.\n',
        '| card | what | date | seconds | tokens | rate | of the published | of that in `limits` | '
        'most memory |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for found in newest.values():
        start = (
            f'| {found["machine"]} | {found["part"]}: {found["what"]}'
            + (f', {found["layers"]} layers' if found['layers'] else '')
            + (f', `XLA_FLAGS={found["xla_flags"]}`' if found['xla_flags'] else '')
            + (f' ({found["remark"]})' if 'remark' in found else '')
            + f' | {found["date"]} | '
        )
        if 'failed' in found:
            lines.append(start + f'failed: {found["failed"]} |' + ' |' * 5)
            continue
        kind = 'bytes' if 'bytes' in found else 'flops'
        shown = rate(found, kind, results) if kind in found else ' | | '
        took = f'{found["seconds"]:.4f}' if 'seconds' in found else ''
        peak = f'{found["peak"] / GIB:.0f} GiB' if found.get('peak') else ''
        lines.append(start + f'{took} | {found.get("tokens", "")} | {shown} | {peak} |')
    return '\n'.join(lines) + '\n'


def measure(given: argparse.Namespace, part: str) -> None:
    """One part, in a process of its own."""
    vars(options).update(vars(given))
    {'limits': limits, 'train': train, 'tower': tower, 'sample': sample}[part]()


def main() -> None:
    given = parsed()
    spawn = multiprocessing.get_context('spawn')  # a forked jax does not live
    for part in given.part or PARTS:
        process = spawn.Process(target=measure, args=(given, part))
        process.start()
        process.join()
        if process.exitcode:
            print(f'{part} failed with status {process.exitcode}.', file=sys.stderr)
    results = [json.loads(line) for line in Path(given.results).read_text().splitlines()]
    Path(given.out).write_text(table(results))
    print(table(results))


if __name__ == '__main__':
    main()
