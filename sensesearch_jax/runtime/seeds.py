"""Seeds by name, the same in every process."""

from __future__ import annotations

import random


def hash_seed(seed: int, name: str) -> int:
    """A seed of 32 bits for something named, the same in every process."""
    return random.Random(f'{seed}-{name}').getrandbits(32)
