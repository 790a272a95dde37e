"""Seeds by name, the same in every process."""

from __future__ import annotations

import random


def hash_seed(seed: int, name: str) -> int:
    """Seed of 32 bits, given a run's seed and a name."""
    return random.Random(f'{seed}-{name}').getrandbits(32)
