"""Rows of the files of a source as plain records, images as references: no image is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sensesearch_jax.data import columns
from sensesearch_jax.data.images import MOST_PATH_CHARS, place
from sensesearch_jax.data.layouts import File
from sensesearch_jax.data.plain_format import FIELDS, BadRecord
from sensesearch_jax.errors import UserError

Row = tuple[str, Mapping[str, Any] | BadRecord]
IMAGE_COLUMNS = 'image', 'images'
FILE_NAME = 'file_name'  # of an image folder's rows
BATCH_ROWS = 256
LARGE_ROWS = 8  # of columns that hold images


def rows_of(file: File) -> Iterator[Row]:
    """The rows of a file, each with its place in it, 'train.jsonl:12', counted from 1.

    Raises:
        UserError: the file cannot be read as a whole, or has columns that no question has.
    """
    reader = {'jsonl': _jsonl, 'json': _json, 'parquet': _parquet, 'arrow': _arrow, 'tfds': _tfds}[
        file.kind
    ]
    try:
        for number, row in enumerate(reader(file), 1):
            shown = f'{file.path.name}:{number}'
            yield shown, _with_paths(row, file) if isinstance(row, Mapping) else row
    except OSError as error:
        raise UserError(f'{file.path} cannot be read: {error.strerror or error}.') from None


def _jsonl(file: File) -> Iterator[Any]:
    offset = 0
    with file.path.open('rb') as opened:
        for line in opened:
            here, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # a byte that is no UTF-8 as well
                yield BadRecord('no JSON', f'it is no JSON: {error}')
                continue
            yield _referenced(row, file, offset=here)


def _json(file: File) -> Iterator[Any]:
    try:
        rows = json.loads(file.path.read_bytes())
    except ValueError as error:
        raise UserError(f'{file.path} is no JSON: {error}.') from None
    if not isinstance(rows, list):
        raise UserError(f'{file.path} holds no list of records; write one, or JSONL.')
    for row in rows:
        yield _referenced(row, file)


def _referenced(row: Any, file: File, **where: int) -> Any:
    """A row of JSON whose embedded images became references of places in the file."""
    if not isinstance(row, Mapping):
        return BadRecord('no object', f'it is {type(row).__name__}, not a JSON object')
    for column in IMAGE_COLUMNS:
        value = row.get(column)
        images = value if isinstance(value, list) else [value]
        if not any(map(_is_embedded, images)):
            continue
        if not where:
            return BadRecord('embedded image', 'a .json file with images in it; write JSONL')
        references = [
            place(file.path, column=column, **where, item=item) if _is_embedded(image) else image
            for item, image in enumerate(images)
        ]
        row = {**row, column: references}
    return row


def _is_embedded(image: Any) -> bool:
    return isinstance(image, str) and (len(image) > MOST_PATH_CHARS or image.startswith('data:'))


def _parquet(file: File) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    path = str(file.path)
    try:
        with file.path.open('rb') as opened:
            table = parquet.ParquetFile(opened)
            _check_columns(file, table.schema_arrow.names)
            # Of a column of {bytes, path} the paths alone tell how many images a row has.
            leaves = [
                column.path for column in (table.schema.column(i) for i in range(len(table.schema)))
            ]
            wanted = [leaf for leaf in leaves if not _is_bytes_beside_path(leaf, leaves)]
            large = any(
                leaf.split('.')[0] in IMAGE_COLUMNS and not leaf.endswith('.path')
                for leaf in wanted
            )
            first = 0
            for batch in table.iter_batches(LARGE_ROWS if large else BATCH_ROWS, columns=wanted):
                yield from _arrow_rows(batch, path, first)
                first += batch.num_rows
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{path} is no whole Parquet file ({reason}); download it again.') from None


def _is_bytes_beside_path(leaf: str, leaves: list[str]) -> bool:
    return (
        leaf.split('.')[0] in IMAGE_COLUMNS
        and leaf.endswith('.bytes')
        and leaf.removesuffix('.bytes') + '.path' in leaves
    )


def _arrow(file: File) -> Iterator[Any]:
    import pyarrow

    path, first = str(file.path), 0
    try:
        table = columns.arrow_table(path)
        _check_columns(file, table.schema.names)
        for batch in table.to_batches(BATCH_ROWS):
            yield from _arrow_rows(batch, path, first)
            first += batch.num_rows
    except pyarrow.ArrowException as error:
        raise UserError(f'{path} is no whole Arrow file ({error}); write it again.') from None


def _check_columns(file: File, names: list[str]) -> None:
    unknown = [name for name in names if name not in (*FIELDS, FILE_NAME) and name[:2] != '__']
    if unknown:
        raise UserError(
            f'{file.path} has the columns {unknown}, which no question has; rename or drop them. Known are '
            f'{list(FIELDS)}. (A published set is converted first: python -m sensesearch_jax.data.convert --list.)'
        )


def _arrow_rows(batch: Any, path: str, first: int) -> Iterator[Mapping[str, Any]]:
    """Rows of an Arrow batch; images as places in the file, or as the paths that a column holds.

    Args:
        batch: of the file.
        path: of the file.
        first: number of the batch's first row in the file.
    """
    plain = [n for n in batch.schema.names if n not in IMAGE_COLUMNS and n[:2] != '__']
    images = {n: _counts(batch.column(n)) for n in batch.schema.names if n in IMAGE_COLUMNS}
    for number, row in enumerate(batch.select(plain).to_pylist()):
        row = {name: value for name, value in row.items() if value is not None}
        if isinstance(row.get('truth'), str):
            row['truth'] = json.loads(row['truth'] or '{}')
        for name, counts in images.items():
            row[name] = [
                counts[number][item]
                if isinstance(counts[number], list)
                else place(path, column=name, row=first + number, item=item)
                for item in range(_length(counts[number]))
            ]
        yield row


def _length(count: int | list[str]) -> int:
    return len(count) if isinstance(count, list) else count


def _counts(column: Any) -> list[int | list[str]]:
    """For each row how many images it has, or the paths where the column holds short texts."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind):
        if types.is_string(kind.value_type) or types.is_large_string(kind.value_type):
            return [_paths(value or []) for value in column.to_pylist()]
        return [count or 0 for count in compute.list_value_length(column).to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind):
        return [_paths([value] if value else []) for value in column.to_pylist()]
    return [int(there) for there in compute.is_valid(column).to_pylist()]


def _paths(values: list[str]) -> int | list[str]:
    return len(values) if any(map(_is_embedded, values)) else values


def _tfds(file: File) -> Iterator[Any]:
    from sensesearch_jax.data.published.examples import read_records

    yield from read_records(file.path, file.split)


def _with_paths(row: Mapping[str, Any], file: File) -> Mapping[str, Any]:
    """A row of an image folder with `file_name` as its image."""
    if file.images is None or FILE_NAME not in row:
        return row
    image = str(epath.Path(file.images) / str(row[FILE_NAME]))
    return {name: value for name, value in row.items() if name != FILE_NAME} | {'image': image}
