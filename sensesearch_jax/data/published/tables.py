"""Rows of the files that sets are published in: JSON, JSONL, Parquet and TSV.

What makes a whole file unusable is a UserError; what makes one row unusable is a BadRecord in its
place, so that the others can be read.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.errors import UserError

Row = Mapping[str, Any]
FIRST = 20  # rows of a JSON file that tell whether it has the columns of a set at all
BATCH = 8  # rows of a Parquet file in memory at once; each may hold a picture of 20 MB


def rows(
    file: epath.PathLike, columns: Sequence[str], optional: Sequence[str], set_name: str
) -> Iterator[tuple[str, Row | BadRecord]]:
    """The rows of a file, each with its place in it ('train.jsonl:12', counted from 1).

    Args:
        file: its suffix tells the kind: .jsonl, .json (a list, or lists under names), .parquet, .tsv.
        columns: a row has all of these.
        optional: and may have these; columns of other names are not read.
        set_name: of the set, for messages.

    Raises:
        UserError: the file cannot be read, or lacks columns.
    """
    path = epath.Path(file)
    reader = {'.jsonl': _jsonl, '.json': _json, '.parquet': _parquet, '.tsv': _tsv}.get(path.suffix)
    if reader is None:
        raise UserError(f'{path} is neither .jsonl, .json, .parquet nor .tsv')
    found = reader(path, columns, optional, set_name)
    if path.suffix in ('.jsonl', '.json'):
        found = _with_columns(found, path, columns, set_name)
    for number, row in enumerate(found, start=1):
        yield f'{path.name}:{number}', row


def missing_columns(
    path: epath.Path, have: Iterable[str], columns: Sequence[str], name: str
) -> None:
    """Refuses a file that lacks columns.

    Args:
        path: of the file.
        have: its columns.
        columns: those that the set has.
        name: of the set.

    Raises:
        UserError: some are not there.
    """
    have = list(have)
    missing = [column for column in columns if column not in have]
    if missing:
        raise UserError(
            f'{path} has the columns {have}, not {missing}: this is not the published layout of {name}, '
            'which docs/published_sets.md describes'
        )


def _with_columns(
    found: Iterator[Row | BadRecord], path: epath.Path, columns: Sequence[str], name: str
) -> Iterator[Row | BadRecord]:
    """JSON rows with their columns checked: none of the first has them all, and it is another layout."""
    first = list(itertools.islice(found, FIRST))
    whole = [row for row in first if not isinstance(row, BadRecord)]
    if whole and not any(all(column in row for column in columns) for row in whole):
        missing_columns(path, whole[0], columns, name)
    for row in itertools.chain(first, found):
        missing = [] if isinstance(row, BadRecord) else [c for c in columns if c not in row]
        yield BadRecord('missing column', f'it has no {missing[0]!r}') if missing else row


def _jsonl(path: epath.Path, *_: Any) -> Iterator[Row | BadRecord]:
    with _open(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # a byte that is no UTF-8 as well
                yield BadRecord('no JSON', f'it is not JSON: {error}')
                continue
            yield _object(row)


def _json(path: epath.Path, *_: Any) -> Iterator[Row | BadRecord]:
    with _open(path) as file:
        try:
            value = json.load(file)
        except ValueError as error:
            raise UserError(f'{path} is not whole JSON ({error}); download it again') from None
    if isinstance(value, Mapping):
        value = itertools.chain.from_iterable(v for v in value.values() if isinstance(v, list))
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise UserError(f'{path} holds no list of records')
    yield from map(_object, value)


def _object(row: Any) -> Row | BadRecord:
    if isinstance(row, Mapping):
        return row
    return BadRecord('no object', f'it is {type(row).__name__}, not a JSON object')


def _parquet(
    path: epath.Path, columns: Sequence[str], optional: Sequence[str], name: str
) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    with _open(path) as file:
        try:
            table = parquet.ParquetFile(file)
            missing_columns(path, table.schema_arrow.names, columns, name)
            there = [c for c in (*columns, *optional) if c in table.schema_arrow.names]
            for batch in table.iter_batches(BATCH, columns=there):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f'{path} is not a whole Parquet file ({reason}); download it again'
            ) from None


def _tsv(
    path: epath.Path, columns: Sequence[str], optional: Sequence[str], name: str
) -> Iterator[Row | BadRecord]:
    csv.field_size_limit(2**31 - 1)  # a picture as base64 text is one field
    with io.TextIOWrapper(_open(path), encoding='utf-8', newline='') as file:
        try:
            reader = csv.DictReader(file, delimiter='\t')
            missing_columns(path, reader.fieldnames or (), columns, name)
            for row in reader:
                short = [column for column in columns if row[column] is None]
                yield (
                    BadRecord('missing column', f'its line ends before {short[0]!r}')
                    if short
                    else row
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f'{path} is not a table of tab-separated values ({error})') from None


def _open(path: epath.Path) -> Any:
    try:
        return path.open('rb')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from None
