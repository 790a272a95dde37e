"""Builds a part of the invented world on disk: entities with their pictures, and the indexes in which
the tool server finds them beside all real ones.

    python -m sensesearch_jax.pocket.invented.build

A minute or two on a core; 250 MB under ~/.cache/sensesearch_jax/invented, or --folder. Then
`--config.tools.config=configs/tools_invented.yaml` searches in it. The same options give the same
folder. A run whose data name the source 'invented' builds it by itself where it is not there.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.invented.files import CACHE
from sensesearch_jax.pocket.invented.looks import WholeLooks
from sensesearch_jax.pocket.invented.world import Invented, InventedWorld
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.scenes import Renderer
from sensesearch_jax.runtime.progress import Progress
from tools_server import command
from tools_server.build_index import build_images, build_text

THUMBNAIL = 56  # pixels, as in configs/tools_pocket.yaml
QUALITY = 88  # of paintings' JPEG files
# entities of each kind by split, and the seed, of the world that runs use
USUAL = {'train': 2600, 'validation': 200}, 0


def build(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Writes entities.jsonl, gallery/, gallery.jsonl, passages.jsonl and the two indexes.

    Args:
        folder: to write; made anew if it was not finished.
        counts: entities of each kind by split.
        seed: of the world.
    """
    files = PocketFiles()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'gallery').mkdir(parents=True)
    renderer = Renderer(files)
    seen = WholeLooks(renderer.picture(name)[0] for name in files.entities)
    real = [json.loads(line) for line in (files.folder / 'gallery.jsonl').read_text().splitlines()]
    with (
        open(folder / 'entities.jsonl', 'w', encoding='utf-8') as entities,
        open(folder / 'gallery.jsonl', 'w', encoding='utf-8') as gallery,
        open(folder / 'passages.jsonl', 'w', encoding='utf-8') as passages,
        Progress('invented entities', 2 * sum(counts.values()), unit='entity') as bar,
    ):

        def write(file, record: dict) -> None:
            file.write(json.dumps(record, ensure_ascii=False) + '\n')

        for record in real:
            write(gallery, record | {'file': str((files.folder / record['file']).resolve())})
        for passage in files.passages.values():
            write(passages, passage)
        titles = {record['title'] for record in real}
        for split in ('validation', 'train'):
            world = InventedWorld(files, split, seed)
            for kind in ('flag', 'painting'):
                for found in distinct(world, kind, counts[split], titles, seen):
                    entity = found.entity
                    save(folder / entity.file, found.pixels)
                    write(entities, dataclasses.asdict(entity))
                    write(gallery, {'id': entity.id, 'title': entity.title, 'file': entity.file})
                    for passage in found.passages:
                        write(passages, passage)
                    bar.update()
    for name, builder in (
        ('text_index', lambda to: build_text(folder / 'passages.jsonl', to)),
        ('picture_index', lambda to: build_images(folder / 'gallery.jsonl', to, THUMBNAIL)),
    ):
        (folder / name).mkdir()
        builder(folder / name)
    (folder / 'built.json').write_text(json.dumps({'counts': counts, 'seed': seed}))


def ensure_built() -> None:
    """Builds the usual world unless it is there; of several processes one does, and the others wait."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE.with_name(f'{CACHE.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / 'built.json').is_file():
            print(f'Building the invented world in {CACHE}, once.', file=sys.stderr)
            build(CACHE, *USUAL)


def distinct(
    world: InventedWorld, kind: str, count: int, titles: set[str], seen: WholeLooks
) -> Iterator[Invented]:
    """The first entities of a kind that are called and look like none before.

    Args:
        world: to draw from.
        kind: 'flag' or 'painting'.
        count: of entities.
        titles: taken ones; gets the new ones.
        seen: pictures; gets the new ones.
    """
    number = 0
    while count:
        found, number = world.entity(kind, number), number + 1
        if found.entity.title in titles or seen.like(found.pixels):
            continue
        titles.add(found.entity.title)
        seen.add(found.pixels)
        count -= 1
        yield found


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture as its name says, PNG or JPEG."""
    Image.fromarray(pixels).save(path, **({'quality': QUALITY} if path.suffix == '.jpg' else {}))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; exit status 1 after a mistake of the caller."""
    parser = command.parser('sensesearch_jax.pocket.invented.build', __doc__)
    parser.add_argument('--folder', type=Path, default=CACHE, help='to write')
    usual, seed = USUAL
    parser.add_argument(
        '--train', type=int, default=usual['train'], help='flags, and as many paintings'
    )
    parser.add_argument(
        '--validation', type=int, default=usual['validation'], help='the same, held out'
    )
    parser.add_argument('--seed', type=int, default=seed)
    options = parser.parse_args(arguments)
    counts = {'train': options.train, 'validation': options.validation}
    asked = {'counts': counts, 'seed': options.seed}
    done = options.folder / 'built.json'
    try:
        if done.is_file():
            if json.loads(done.read_text()) != asked:
                raise UserError(f'{options.folder} holds another world; choose another --folder')
            print(f'{options.folder} is built already')
            return 0
        if options.folder.exists() and not (options.folder / 'entities.jsonl').is_file():
            if any(options.folder.iterdir()):
                raise UserError(f'{options.folder} holds something else; choose another --folder')
        build(options.folder, counts, options.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
