"""All items of a benchmark in the making, with their faults: of each alone, and of two together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sensesearch_jax.data.benchmark.items import Item, Rules, read_item
from sensesearch_jax.data.benchmark.likeness import alike, description
from sensesearch_jax.data.faults import Faults
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.progress import Progress

THREADS, AHEAD = 4, 8  # that open pictures; pictures opened in advance


def read_items(file: Path, rules: Rules) -> list[Item]:
    """The items of a JSONL file, checked.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    try:
        lines = [line for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'benchmark.data {file} cannot be read: {error}') from None
    if not lines:
        raise UserError(f'benchmark.data {file} is empty; give a JSON object a line')

    def checked(numbered: tuple[int, str]) -> tuple[Item, np.ndarray | None]:
        number, line = numbered
        place = f'line {number}'
        try:
            record = json.loads(line)
        except ValueError as error:
            return Item(place, faults=[('no JSON', str(error))]), None
        item = read_item(record, place, file.parent, file.stem, rules)
        return item, None if item.size is None else description(item.question.images[0])

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    opened = grain.MapDataset.source(list(enumerate(lines, 1))).map(checked)
    items, described = [], []
    with Progress('items', len(lines), unit='item') as bar:
        for item, vectors in opened.to_iter_dataset(options):
            items.append(item)
            described.append(vectors)
            bar.update()
    _note_repeated(items)
    _note_alike(items, described, rules.max_likeness)
    return items


def _note_repeated(items: Sequence[Item]) -> None:
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.id] += 1
        if seen[item.id] > 1:
            item.faults.append(('duplicate id', f'another item has the id {item.id}'))


def _note_alike(items: Sequence[Item], described: Sequence[np.ndarray | None], most: float) -> None:
    """Of two pictures that are nearly the same the later one's item has the fault."""
    pairs = [(item, vectors) for item, vectors in zip(items, described) if vectors is not None]
    if not pairs:
        return
    table = np.stack([vectors for _, vectors in pairs])
    for number, (item, vectors) in enumerate(pairs[1:], 1):
        found = alike(vectors, table[:number])
        if found.max() > most:
            # the first of those that are equally near
            nearest = int(np.where(found > most, found.round(2), -1).argmax())
            why = f'its picture is {found[nearest]:.2f} like that of {pairs[nearest][0].id}'
            item.faults.append(('near-duplicate picture', why))


def fault_lines(items: Sequence[Item]) -> list[str]:
    """A line for each kind of fault, the most frequent first."""
    faults = Faults()
    for item in items:
        for kind, message in item.faults:
            faults.add(kind, item.id, message)
    return [f'  {line}' for line in faults.lines()]


def shares(values: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Number and share of each value, the most frequent first."""
    counts = Counter(value or '(none)' for value in values).most_common()
    return {name: {'items': n, 'share': round(n / len(values), 4)} for name, n in counts}
