"""Records that are no questions, counted by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST_IDS = 5  # that are named of each kind


@dataclass
class Faults:
    """Faults by kind: how many, the first ids, and the message of the first."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, name: str, message: str) -> None:
        """Counts a record.

        Args:
            kind: of its fault.
            name: its id, or its place in a file.
            message: the fault, in a sentence.
        """
        entry = self.kinds.setdefault(kind, {'count': 0, 'ids': [], 'message': message})
        entry['count'] += 1
        if len(entry['ids']) < FIRST_IDS:
            entry['ids'].append(name)

    @property
    def count(self) -> int:
        """Records that are no questions."""
        return sum(entry['count'] for entry in self.kinds.values())

    def lines(self) -> list[str]:
        """One line a kind, the most frequent first."""
        ordered = sorted(self.kinds.items(), key=lambda item: -item[1]['count'])
        return [
            f'{kind}: {entry["count"]} ({first_ids(entry["ids"], entry["count"])}); '
            f'the first: {entry["message"]}'
            for kind, entry in ordered
        ]


def first_ids(names: Sequence[str], count: int) -> str:
    """The first few of `count` names, and whether there are more."""
    return ', '.join(names[:FIRST_IDS]) + (', …' if count > FIRST_IDS else '')
