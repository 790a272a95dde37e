"""Single rows of Parquet, Arrow, JSONL and array_record files, without the rest in memory."""

from __future__ import annotations

import functools
import json
import threading
from typing import Any

from etils import epath

# Parquet gives whole row groups only. Small ones are kept, since neighbours come together; of large
# ones the wanted row alone is.
KEPT_BYTES = 256 << 20
KEPT_GROUPS = 2


def cell(file: str, column: str, row: int) -> Any:
    """One cell of a Parquet or Arrow file as Python values.

    Args:
        file: a .parquet file, or an .arrow file as `datasets` writes it.
        column: its name.
        row: from 0, of the whole file.

    Raises:
        OSError, KeyError, IndexError: there is no such file, column or row.
        ValueError: the file is not what its name says.
    """
    if file.endswith('.arrow'):
        return arrow_table(file).column(column)[row].as_py()
    starts = _starts(file)
    if not 0 <= row < starts[-1]:
        raise IndexError(f'row {row} of {starts[-1]}')
    group = next(g for g, start in enumerate(starts[1:]) if row < start)
    return _in_group(file, column, group, row - starts[group])


def line_at(file: str, offset: int) -> Any:
    """The JSON value of the line that begins at an offset of a JSONL file."""
    with epath.Path(file).open('rb') as opened:
        opened.seek(offset)
        return json.loads(opened.readline())


@functools.lru_cache(maxsize=8)
def arrow_table(file: str) -> Any:
    """An Arrow file, mapped into memory where it is a local one."""
    import pyarrow

    local = '://' not in file
    source = pyarrow.memory_map(file) if local else epath.Path(file).open('rb')
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:  # the other of the two Arrow layouts
        source.seek(0)
        return pyarrow.ipc.open_file(source).read_all()


@functools.lru_cache(maxsize=8)
def tfds_source(directory: str, split: str) -> Any:
    """Random access to a split of a tensorflow-datasets directory, images as encoded."""
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves each image of a sequence as its file, which the library's own class cannot."""

        def decode_batch_example_np(self, files: Any) -> Any:
            return files

    builder = tfds.builder_from_directory(directory)
    decoders = {'images': Encoded()} if 'images' in builder.info.features else None
    return builder.as_data_source(split, decoders=decoders)


@functools.lru_cache(maxsize=64)
def _starts(file: str) -> tuple[int, ...]:
    """The first row of each row group of a Parquet file, and then the number of rows."""
    import pyarrow.parquet as parquet

    with epath.Path(file).open('rb') as opened:
        metadata = parquet.ParquetFile(opened).metadata
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


_lock = threading.Lock()


def _in_group(file: str, column: str, group: int, row: int) -> Any:
    with _lock:  # several threads want neighbours: one of them reads
        values = _kept(file, column, group)
    if values is not None:
        return values[row].as_py()
    import pyarrow.parquet as parquet

    with epath.Path(file).open('rb') as opened:
        batches = parquet.ParquetFile(opened).iter_batches(8, row_groups=[group], columns=[column])
        for batch in batches:
            if row < batch.num_rows:
                return batch.column(0)[row].as_py()
            row -= batch.num_rows
    raise IndexError(f'row {row} of row group {group}')


@functools.lru_cache(maxsize=KEPT_GROUPS)
def _kept(file: str, column: str, group: int) -> Any:
    """A column of a row group; None where it is too large to keep."""
    import pyarrow.parquet as parquet

    with epath.Path(file).open('rb') as opened:
        parquet_file = parquet.ParquetFile(opened)
        rows = parquet_file.metadata.row_group(group)
        parts = [rows.column(i) for i in range(rows.num_columns)]
        of_column = [p for p in parts if p.path_in_schema.split('.')[0] == column]
        if not of_column:
            raise KeyError(column)
        if sum(p.total_uncompressed_size for p in of_column) > KEPT_BYTES:
            return None
        return parquet_file.read_row_group(group, columns=[column]).column(0)
