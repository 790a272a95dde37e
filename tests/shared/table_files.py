"""Files of tables and pictures in the forms in which sets are published."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, kind: str = 'JPEG', size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture file that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_picture(path: Path, seed: int) -> str:
    """Writes one, and returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed, 'PNG' if path.suffix == '.png' else 'JPEG'))
    return str(path)


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes rows as the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.parquet':
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    elif path.suffix == '.json':
        path.write_text(json.dumps(rows, ensure_ascii=False))
    else:
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter='\t')
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_json(path: Path, value: dict) -> None:
    """Writes an object."""
    path.write_text(json.dumps(value))


def read_rows(path: Path) -> list[dict]:
    """The rows that `write_rows` wrote."""
    if path.suffix == '.parquet':
        return pq.read_table(path).to_pylist()
    if path.suffix == '.jsonl':
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == '.json':
        return json.loads(path.read_text())
    csv.field_size_limit(2**31 - 1)
    with path.open(newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def b64(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode()
