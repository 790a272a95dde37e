"""Size limit of JSON texts: their values take time and memory far beyond their bytes."""

from __future__ import annotations

# Of what is sent in earnest a few per cent are such signs: a response of a million letters has some
# 20,000.
MOST_VALUES = 300_000


def values_in(data: bytes) -> int:
    """At most so many values are in a JSON text or a piece of one; signs in strings count too."""
    return data.count(b'{') + data.count(b'[') + data.count(b',')
