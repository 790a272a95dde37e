"""How long one call of each tool takes, through HTTP and the client, one caller.

    python -m experiments.benchmarks.tool_latency            # half a minute, one core for each of server and client

Every request is a new one (no answer comes from the cache). The picture is a 3840×2160 JPEG of the
pocket world. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.scenes import Renderer, sample_scene
from tools_server.launch import ToolServer

CONFIG = Path(__file__).parents[2] / 'configs' / 'tools_pocket.yaml'
# Longest median allowed on two cores, in milliseconds: crops of a 4K picture, searches in 41,718
# passages and in 401 pictures.
BARS_MS = {'crop': 50, 'crop of half a 4K': 50, 'text search': 15, 'image search in a crop': 60,
           'image search in 4K': 60}  # fmt: skip


def main() -> int:
    """Prints the table; 1 where a median is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--config', default=CONFIG, type=Path, help='of the tool server')
    parser.add_argument('--calls', default=100, type=int, help='of each tool')
    arguments = parser.parse_args()
    files = PocketFiles()
    renderer = Renderer(files)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}

    def measure(name: str, call, *values):
        start = time.perf_counter()
        result = call(*values)
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        if isinstance(result, ToolFailure):
            raise SystemExit(f'{name} failed: {result.message}')
        return result

    with (
        tempfile.TemporaryDirectory() as workdir,
        ToolServer.start(arguments.config, workdir) as server,
    ):
        client = ToolClient(server.url)
        flags = [entity for entity in files.entities.values() if entity.kind == 'flag']
        pictures = []
        for _ in range(6):
            buffer = io.BytesIO()
            renderer.render(sample_scene(rng, flags, 'map', 6, (90, 220))).save(
                buffer, 'JPEG', quality=92
            )
            pictures.append(buffer.getvalue())
        originals = [measure('upload, new', client.upload, data) for data in pictures]
        for data in pictures:
            measure('upload, again', client.upload, data)
        for number in range(arguments.calls):
            original = originals[number % len(originals)]
            size = rng.uniform(0.08, 0.3, 2)
            low = rng.uniform(0, 1 - size)
            crop = measure('crop', client.crop, original.sha256, (*low, *(low + size)))
            measure('image search in a crop', client.image_search, crop.sha256)
            measure('image, fetched', client.image, crop.sha256)
            entity = flags[number % len(flags)]
            measure('text search', client.text_search, f'{entity.title} capital {number}')
            measure('judge by rules', client.judge, f'q{number}', ['Paris'], f'Lyon {number}')
        for original in originals:
            measure('image search in 4K', client.image_search, original.sha256)
            measure('crop of half a 4K', client.crop, original.sha256, (0.1, 0.1, 0.8, 0.81))
    print(f'{"call":26}{"n":>5}{"p50 ms":>9}{"p95 ms":>9}{"bar, p50":>10}')
    missed = False
    for name, values in times.items():
        p50, p95 = np.quantile(values, (0.5, 0.95))
        bar = BARS_MS.get(name)
        missed |= bar is not None and p50 > bar
        print(
            f'{name:26}{len(values):5}{p50:9.1f}{p95:9.1f}{"" if bar is None else f"{bar:10.0f}"}'
        )
    return int(missed)


if __name__ == '__main__':
    sys.exit(main())
