"""Builds an index on disk for the back ends named 'index' and 'prefetched'.

    python -m tools_server.build_index text passages.jsonl runs/text_index
    python -m tools_server.build_index images FOLDER runs/picture_index
    python -m tools_server.build_index results train_qwen3_vl_8b.json runs/image_results

Text: a .jsonl or .jsonl.xz file of {"title", "text"} (or Search-R1's {"contents"}). Images: a
folder, whose pictures are named by their file names, or a .jsonl list of {"title", "file"}.
Results: image searches that a data set brings along, a manifest of SenseNova-MARS or one of its
.jsonl files of {"image", "image_search_title_list", "image_search_thumbnail_list"}. The index is
written beside its place and moved there when it is whole. Exit status: 0, or 1 when the data cannot
be used.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools_server import command
from tools_server.config import ConfigError
from tools_server.failures import ToolError

SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif'}
HEAP_BYTES = 256 * 2**20  # that tantivy fills before it writes a segment


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 after a ConfigError, whose sentence it prints."""
    parser = command.parser('tools_server.build_index', __doc__)
    parser.add_argument('kind', choices=('text', 'images', 'results'))
    parser.add_argument('source', type=Path, help='file or folder to index')
    parser.add_argument('index', type=Path, help='folder to write; it must not exist')
    parser.add_argument(
        '--thumbnail_side',
        type=int,
        help='longest side of thumbnails, in pixels (images: 56, results: 256)',
    )
    options = parser.parse_args(arguments)
    part = options.index.with_name(f'{options.index.name}.part{os.getpid()}')
    try:
        if options.index.exists():
            raise ConfigError(f'{options.index} exists; remove it or choose another folder')
        if not options.source.exists():
            raise ConfigError(f'there is no {options.source}')
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f'{options.index} cannot be written: {error.strerror}; choose another folder'
            ) from None
        if options.kind == 'text':
            count = build_text(options.source, part)
        elif options.kind == 'results':
            count = build_results(options.source, part, options.thumbnail_side or 256)
        elif importlib.util.find_spec('usearch') is None:
            raise ConfigError("a picture index needs usearch: pip install 'sensesearch_jax[index]'")
        else:
            count = build_images(options.source, part, options.thumbnail_side or 56)
        part.rename(options.index)
    except ConfigError as error:
        print(f'build_index: {error}', file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(part, ignore_errors=True)
    counted = {'results': 'pictures with results', 'text': 'passages'}.get(options.kind, 'pictures')
    print(f'{options.index}: {count} {counted}')
    return 0


def build_text(source: Path, folder: Path) -> int:
    """Indexes passages; returns how many. Memory does not grow with their number.

    Raises:
        ConfigError: the passages cannot be read.
    """
    import tantivy

    from tools_server.backends import text_analysis, text_bm25

    index = tantivy.Index(text_bm25.schema(), path=str(folder))
    index.register_tokenizer(text_analysis.NAME, text_analysis.analyser())
    writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)
    count = 0
    with tqdm(total=source.stat().st_size, unit='B', unit_scale=True, desc='text index') as bar:
        for title, text in text_bm25.read_passages(
            source, lambda position: bar.update(position - bar.n)
        ):
            writer.add_document(text_bm25.document(title, text, count))
            count += 1
    writer.commit()
    writer.wait_merging_threads()
    return count


def build_images(source: Path, folder: Path, thumbnail_side: int) -> int:
    """Indexes pictures; files that are no pictures are named and left out.

    Args:
        source: folder of pictures.
        folder: of the index, which is made.
        thumbnail_side: longest side of the thumbnails, in pixels.

    Returns:
        How many there are.

    Raises:
        ConfigError: there are no pictures.
    """
    from tools_server.backends.image_index import write_index
    from tools_server.backends.image_local import describe_picture, read_gallery

    if source.is_dir():
        files = sorted(p for p in source.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
        entries = [(path.stem.replace('_', ' '), path) for path in files]
    else:
        entries = read_gallery(source)

    def described() -> Iterator[tuple[str, np.ndarray, bytes]]:
        for title, path in tqdm(entries, unit='pictures', desc='picture index'):
            try:
                yield title, *describe_picture(path.read_bytes(), thumbnail_side)
            except (ToolError, OSError) as error:
                tqdm.write(f'{path} is left out: {error}', file=sys.stderr)

    return write_index(folder, described(), thumbnail_side)


def build_results(source: Path, folder: Path, thumbnail_side: int) -> int:
    """Keeps image searches by their pictures' content; what cannot be read is named and left out.

    Args:
        source: a manifest of SenseNova-MARS, or one of its .jsonl files.
        folder: to write to, which is made.
        thumbnail_side: longest side of the thumbnails, in pixels.

    Returns:
        How many pictures have results.

    Raises:
        ConfigError: the file is neither, or no picture has results.
    """
    from tools_server.backends.image_prefetched import write_searches
    from tools_server.released_searches import read_searches

    def shown(text: str) -> None:
        tqdm.write(f'left out: {text}', file=sys.stderr)

    searches = tqdm(read_searches(source, shown), unit='pictures', desc='image results')
    return write_searches(folder, searches, thumbnail_side)


if __name__ == '__main__':
    sys.exit(main())
