"""Seeds by name, the same in every process."""

from __future__ import annotations

import random


def hash_seed(seed: int, name: str) -> int:
    """Seed of 32 bits, given a run's seed and a name."""
    return random.Random(f'{seed}-{name}').getrandbits(32)


def hash_seeds(seed: int, name: str, count: int) -> tuple[int, ...]:
    """Seeds of `NAME-0`, `NAME-1`, …, such as a question's members.

    Args:
        seed: of the run.
        name: of the group, its step and stage included.
        count: of its members.
    """
    return tuple(hash_seed(seed, f'{name}-{i}') for i in range(count))
