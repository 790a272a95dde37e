"""Share of padding in a 7B run's batches, on a mix of lengths as real runs have it: 4K prompts,
1 to 10 turns.

    python -m experiments.benchmarks.padding

The lengths are drawn, not measured: prompts of a 4K picture and a question, per turn a thought with
a call and a response (passages, thumbnails, or a crop), conversations cut at 32,768 tokens. Batches
are cut as the SFT and RL tasks do it, with the settings of configs/sft_7b.py and configs/rl_7b.py.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sensesearch_jax.batching.group_batch import Member, Row, padded_lengths
from sensesearch_jax.batching.length_bucketing import FINE, bucket, by_length
from sensesearch_jax.recipes.rows import PROMPT_STEP, SUFFIX_STEP, row_length

LONGEST = 32_768


def mix(count: int, seed: int, members: int = 1) -> list[Row]:
    """Rows of nothing but lengths.

    The members of one group share the prompt and draw their turns independently.
    """
    random = np.random.default_rng(seed)
    pictures = (10_549, 10_545, 10_500, 10_434, 10_350)  # tokens of 4K pictures of several shapes
    rows = []
    for _ in range(count):
        prompt = int(random.choice(pictures)) + int(random.integers(20, 220))
        suffixes = []
        for _ in range(members):
            turns = int(random.integers(1, 11))
            own = random.lognormal(5.2, 0.5, turns).sum()  # a median of 180 tokens a turn
            response = random.choice(
                [random.uniform(600, 2400), random.uniform(700, 1400), random.uniform(64, 2600)],
                turns - 1,
            ).sum()
            suffixes.append(Member(range(min(int(own + response), LONGEST - prompt)), ()))
        rows.append(Row(range(prompt), (), suffixes))
    return rows


def share_of(batches: Iterable[Sequence[Row]], rows: int, pack_step: int = 0) -> tuple[float, int]:
    """The share of padding over batches of `rows` rows, and how many shapes they have."""
    used, size, shapes = 0, 0, set()
    for batch in batches:
        p, s = padded_lengths(batch, PROMPT_STEP, SUFFIX_STEP)
        suffixes = [sum(1 + len(m.tokens) for m in row.members) for row in batch]
        after = s * len(batch[0].members)
        if pack_step:
            after = bucket(max(suffixes), pack_step, FINE)
        shapes.add((p, s, after))
        size += rows * (p + after)
        used += sum(suffixes) + sum(len(row.prompt) - 1 for row in batch)
    return 1 - used / size, len(shapes)


def micro_batches(batches: Iterable[Sequence[Row]], rows: int) -> Iterator[Sequence[Row]]:
    """Batches in pieces of `rows` rows."""
    return (b[first : first + rows] for b in batches for first in range(0, len(b), rows))


def sft(
    mixed: Sequence[Row], batch: int, rows: int, window: int, epochs: int, seed: int
) -> tuple[float, int]:
    """Padding of SFT on these rows."""
    random = np.random.default_rng(seed)
    order = [i for _ in range(epochs) for i in random.permutation(len(mixed))]
    alike = by_length(
        [order[i : i + batch] for i in range(0, len(order), batch)],
        lambda i: row_length(len(mixed[i].prompt), len(mixed[i].members[0].tokens)),
        window,
        seed,
    )
    return share_of(micro_batches(([mixed[i] for i in b] for b in alike), rows), rows)


def rl(mixed: Sequence[Row], batch: int, rows: int, pack_step: int) -> tuple[float, int]:
    """Padding of RL updates on these groups."""

    def size(row):
        return (sum if pack_step else max)(len(m.tokens) for m in row.members)

    batches = [sorted(mixed[i : i + batch], key=size) for i in range(0, len(mixed), batch)]
    return share_of(micro_batches(batches, rows), rows, pack_step)


def main() -> None:
    settings = runpy.run_path('configs/sft_7b.py')['get_config']().sft
    mixed, rows = mix(3000, 0), settings.micro_batch
    tokens = [len(row.members[0].tokens) for row in mixed]
    late = np.percentile(tokens, 95)
    print(
        f'trajectories after the prompt: mean {np.mean(tokens):.0f}, 95 % below {late:.0f} tokens'
    )
    for window in sorted({1, settings.length_window, 47}):
        share, shapes = sft(mixed, settings.batch, rows, window, settings.epochs, 0)
        print(f'SFT, {rows} rows, window of {window} batches: {share:.1%} padding, {shapes} shapes')
    settings = runpy.run_path('configs/rl_7b.py')['get_config']().rl
    mixed, rows = mix(1280, 1, settings.members), settings.micro_batch
    print(f'RL, {rows} rows of {settings.members}, turns drawn independently:')
    for pack_step in (0, settings.pack_step):
        share, shapes = rl(mixed, settings.questions_per_step, rows, pack_step)
        print(f'  pack_step {pack_step}: {share:.1%} padding, {shapes} shapes')


if __name__ == '__main__':
    main()
