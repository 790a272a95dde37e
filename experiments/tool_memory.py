"""Memory of the tool server in use: what each kind of call leaves behind.

    python -m experiments.tool_memory            # a minute, two cores

Sixteen callers; pictures are 4K JPEG files of the pocket world. Ends with status 1 where more than
600 MiB are resident at the end.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.scenes import Renderer, sample_scene
from tools_server.launch import ToolServer

CONFIG = Path(__file__).parents[1] / 'configs' / 'tools_pocket.yaml'
BAR_MIB = 600


def main() -> int:
    """Prints the table; 1 beyond the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=CONFIG, type=Path, help='of the tool server')
    parser.add_argument('--pictures', default=60, type=int, help='different ones')
    options = parser.parse_args()
    pictures = scenes(options.pictures)
    with (
        tempfile.TemporaryDirectory() as workdir,
        ToolServer.start(options.config, workdir) as server,
        ThreadPoolExecutor(16) as pool,
    ):
        client = ToolClient(server.url, deadline_s=60)

        def every(name, call, values):
            results = list(pool.map(call, values))
            if failures := [result for result in results if isinstance(result, ToolFailure)]:
                raise SystemExit(f'{name} failed: {failures[0].message}')
            now, most = resident_mib(server.process.pid)
            print(f'{len(results):6} × {name:28}{now:8.0f} MiB now{most:8.0f} MiB at most')
            return results

        rng = np.random.default_rng(0)
        every('text search', lambda n: client.text_search(f'capital of number {n}'), range(3000))
        refs = every('upload of a 4K picture', client.upload, pictures)
        boxes = [(*low, *(low + 0.15)) for low in rng.uniform(0, 0.85, (1000, 2))]
        crops = every(
            'crop', lambda i: client.crop(refs[i % len(refs)].sha256, boxes[i]), range(len(boxes))
        )
        every('image search in a crop', lambda ref: client.image_search(ref.sha256), crops)
        every('image search in 4K', lambda ref: client.image_search(ref.sha256), refs)
        every('crop of half a 4K', lambda ref: client.crop(ref.sha256, (0.1, 0.1, 0.8, 0.81)), refs)
        return int(resident_mib(server.process.pid)[0] > BAR_MIB)


def scenes(count: int) -> list[bytes]:
    """Different 4K pictures as JPEG files; a few scenes with one pixel changed each."""
    files, rng = PocketFiles(), np.random.default_rng(0)
    renderer = Renderer(files)
    flags = [entity for entity in files.entities.values() if entity.kind == 'flag']
    drawn = [renderer.render(sample_scene(rng, flags, 'map', 6, (90, 220))) for _ in range(6)]
    found = []
    for number in range(count):
        picture, buffer = drawn[number % len(drawn)].copy(), io.BytesIO()
        picture.paste((number, 0, 0), (0, 0, 16, 16))
        picture.save(buffer, 'JPEG', quality=92)
        found.append(buffer.getvalue())
    return found


def resident_mib(process: int) -> tuple[float, float]:
    """Memory of a process now and at most so far."""
    status = Path(f'/proc/{process}/status').read_text()
    now, most = (
        int(re.search(rf'{name}:\s+(\d+)', status).group(1)) / 1024 for name in ('VmRSS', 'VmHWM')
    )
    return now, most


if __name__ == '__main__':
    sys.exit(main())
