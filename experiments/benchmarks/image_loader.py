"""The rate at which 4K pictures become a policy's patches, and the memory that it takes.

    python -m experiments.benchmarks.image_loader [--policy=DIR] [--images=5000] [--max_pixels=N]

Makes 50 JPEGs of 3840×2160 in three containers (files, Parquet, tensorflow-datasets) and reads them by
reference in a shuffled order: decoded, converted to upright RGB, resized and cut into patches, as rollouts
do it. Exits with 1 below BAR images per second of two cores' CPU time, or where the most memory resident in
one of the later tenths is not within FLAT of their median. Four minutes on two idle cores.
"""

from __future__ import annotations

import io
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

import grain
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from sensesearch_jax.data.images import place, read_image
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.metrics import memory_use
from sensesearch_jax.runtime.progress import Progress
from tools_server.pictures.decoder import read_gentle

BAR, FLAT = 20.0, 0.05
SIZE, DISTINCT, ROWS = (3840, 2160), 50, 4  # pixels; pictures; rows of a row group
AHEAD = 4  # pictures whose patches wait for the reader: 200 MB each at 8.3 million pixels
POLICY = flags.DEFINE_string('policy', None, "Whose processor; else transformers' defaults.")
IMAGES = flags.DEFINE_integer('images', 5000, 'References that are read.', lower_bound=100)
THREADS = flags.DEFINE_integer('threads', 2, 'Threads that read.')
MAX_PIXELS = flags.DEFINE_integer('max_pixels', 0, "Of a resized picture; 0: the processor's own.")


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Encoded pictures in array_record files."""

    VERSION, files = tfds.core.Version('1.0.0'), []

    def _info(self) -> tfds.core.DatasetInfo:
        images = tfds.features.Sequence(tfds.features.Image(encoding_format='jpeg'))
        features = tfds.features.FeaturesDict({'images': images})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager) -> dict:
        return {'some': ((i, {'images': [io.BytesIO(f)]}) for i, f in enumerate(self.files))}

    _generate_examples = None  # splits are generators


def picture(seed: int) -> bytes:
    """A JPEG as large as a photograph's, 3 MB."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (270, 480, 3), np.uint8)).resize(SIZE)
    pixels = np.asarray(coarse) + draw.integers(-6, 7, (SIZE[1], SIZE[0], 1), np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    return file.getvalue()


def pool(folder: Path) -> list[str]:
    """References of all pictures, a third of them in each container."""
    files = [picture(seed) for seed in range(DISTINCT)]
    alone, table, Pictures.files = files[::3], files[1::3], files[2::3]
    for i, data in enumerate(alone):
        (folder / f'{i}.jpg').write_bytes(data)
    column = arrow.table({'image': [{'bytes': data} for data in table]})
    parquet.write_table(column, folder / 'some.parquet', row_group_size=ROWS)
    builder = Pictures(data_dir=str(folder), file_format='array_record')
    builder.download_and_prepare()
    return [
        *(str(folder / f'{i}.jpg') for i in range(len(alone))),
        *(place(folder / 'some.parquet', column='image', row=i, item=0) for i in range(len(table))),
        *(place(builder.data_path, split='some', row=i, item=0) for i in range(len(Pictures.files))),
    ]  # fmt: skip


def main(_) -> None:
    logging.getLogger('absl').setLevel(logging.WARNING)
    preprocessor = Preprocessor.read(POLICY.value) if POLICY.value else Preprocessor()
    stages = read_image, read_gentle, preprocessor.within(0, MAX_PIXELS.value).patches
    with tempfile.TemporaryDirectory() as folder:
        references = pool(Path(folder))
        values = list(references)
        for name, stage in zip(('read', 'decode and convert', 'resize and cut'), stages):
            start = time.process_time()
            values = [stage(value) for value in values[:10]]
            print(f'{name}: {100 * (time.process_time() - start):.1f} ms of CPU time an image')
        del values
        order = random.Random(0).choices(references, k=IMAGES.value)
        read = grain.MapDataset.source(order).map(lambda r: stages[2](stages[1](stages[0](r))))
        options = grain.ReadOptions(num_threads=THREADS.value, prefetch_buffer_size=AHEAD)
        most, clock, cpu = [0.0] * 10, time.perf_counter(), time.process_time()
        with Progress('images', len(order), unit='image') as bar:
            for number, (patches, _) in enumerate(read.to_iter_dataset(options)):
                tenth = 10 * number // len(order)
                most[tenth] = max(most[tenth], memory_use()['memory_mib'])
                bar.update()
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    rate, middle = 2 * len(order) / cpu, float(np.median(most[1:]))
    each = f'{len(order)} images of {SIZE[0]}×{SIZE[1]}, {len(patches)} patches each'
    print(
        f'{each}: {len(order) / clock:.1f}/s by the clock; {1e3 * cpu / len(order):.1f} ms of CPU time, '
        f'so {rate:.1f}/s on two cores'
    )
    print('MiB resident at most, by tenths:', *(f'{m:.0f}' for m in most))
    sys.exit(rate < BAR or any(abs(m / middle - 1) > FLAT for m in most[1:]))


if __name__ == '__main__':
    keep_memory('experiments.benchmarks.image_loader')
    app.run(main)
