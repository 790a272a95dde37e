"""The invented world on disk, in the form of the pocket world's data folder."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.files import FOLDER, PocketFiles

CACHE = Path.home() / '.cache' / 'sensesearch_jax' / 'invented'


class InventedFiles(PocketFiles):
    """Entities that `python -m sensesearch_jax.pocket.invented.build` drew, of the splits 'train' and
    'validation'.

    Args:
        folder: that it wrote.

    Raises:
        UserError: it was not built.
    """

    name = 'invented'

    def __init__(self, folder: Path | str = CACHE):
        if not (Path(folder) / 'built.json').is_file():
            raise UserError(
                f'{folder} holds no invented world; '
                'build it with python -m sensesearch_jax.pocket.invented.build'
            )
        super().__init__(folder)

    @cached_property
    def passages(self) -> dict[str, dict[str, str]]:
        """Passage id -> {'id', 'title', 'text'}, the real ones included."""
        with open(self.folder / 'passages.jsonl', encoding='utf-8') as lines:
            return {record['id']: record for record in map(json.loads, lines)}

    @property
    def relief(self) -> Path:
        """The relief map, which is the pocket world's."""
        return FOLDER / 'relief.jpg'
