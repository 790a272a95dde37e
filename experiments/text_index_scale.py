"""Building a text index of a million passages: time, memory, size on disk, and how long a search
takes.

    python -m experiments.text_index_scale                     # some minutes on one core
    python -m experiments.text_index_scale --passages=50000    # a small one

The passages are made up: 100 words each, drawn by Zipf's law from 200,000 words, as large as those
that Wikipedia is usually cut into. The index is built by the command that a user types, and its
peak memory is what the operating system says of that process and its children. Status 1 if it took
more than 4 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tools_server.backends.text_local import IndexedTextSearch
from tools_server.config import parse_config

MOST_BYTES = 4e9
WORDS, PER_PASSAGE, BATCH = 200_000, 100, 1000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--passages', type=int, default=1_000_000)
    parser.add_argument('--searches', type=int, default=200)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    words = np.array([f'w{number:x}' for number in rng.permutation(WORDS)])
    with tempfile.TemporaryDirectory() as folder:
        source, index = Path(folder) / 'passages.jsonl', Path(folder) / 'index'
        with open(source, 'w', encoding='utf-8') as lines:
            for first in range(0, options.passages, BATCH):
                drawn = words[np.minimum(rng.zipf(1.3, (BATCH, PER_PASSAGE)) - 1, WORDS - 1)]
                for number, row in enumerate(drawn[: options.passages - first], first):
                    lines.write(
                        json.dumps({'title': f'Passage {number}', 'text': ' '.join(row)}) + '\n'
                    )
        start = time.perf_counter()
        command = [sys.executable, '-m', 'tools_server.build_index', 'text', source, index]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (
            1 if sys.platform == 'darwin' else 1024
        )
        size = sum(file.stat().st_size for file in index.iterdir())
        print(f'{options.passages} passages ({source.stat().st_size / 1e6:.0f} MB) in {seconds:.0f} s, '
              f'peak memory {peak / 1e9:.2f} GB, index {size / 1e6:.0f} MB')  # fmt: skip
        config = parse_config({'text_search': {'backend': 'index', 'index': str(index)}})
        search, times = IndexedTextSearch(config.text_search), []
        for _ in range(options.searches):
            query = ' '.join(words[rng.integers(0, 5_000, 6)])
            start = time.perf_counter()
            search.search(query, 5)
            times.append(1e3 * (time.perf_counter() - start))
        p50, p99 = np.quantile(times, (0.5, 0.99))
        print(f'searches of six words: p50 {p50:.1f} ms, p99 {p99:.1f} ms')
    return int(peak > MOST_BYTES)


if __name__ == '__main__':
    sys.exit(main())
