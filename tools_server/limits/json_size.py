"""How much of a JSON text is read: objects take time and memory far beyond their bytes."""

from __future__ import annotations

# More signs than any text that is allowed may hold of its own accord (a response to judge has a million at most).
MOST_OBJECTS = 1_100_000


def objects_in(data: bytes) -> int:
    """At most so many objects and lists are in a JSON text, or a piece of one; signs inside of strings count too."""
    return data.count(b'{') + data.count(b'[')
